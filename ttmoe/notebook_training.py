"""Training of one expert in a notebook: a plain loop on one device, without checkpoints or evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.bank import Bank
from ttmoe.encoding import Item, collate, pool
from ttmoe.scoring import score


def train_expert(bank: Bank, name: str, items: Sequence[Item], targets: Tensor, pad_id: int, *, epochs: int,
                 batch_size: int, lr: float, seed: int) -> list[float]:  # fmt: skip
    """Train an expert of the bank with AdamW and a learning rate that falls linearly to zero, then freeze it.

    Args:
        bank: The bank. Only the named expert changes.
        name: The expert.
        items: The training rows.
        targets: The index of each row's label or option, (rows,), int64. Ignored for completions.
        pad_id: Id that fills the padded sequences.
        epochs: Passes over the rows.
        batch_size: Rows per step.
        lr: Learning rate of the first step.
        seed: Seed of the order of rows.

    Returns:
        The loss of every step.
    """
    expert = bank.expert(name).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(expert.parameters(), lr=lr)
    steps = epochs * -(-len(items) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(epochs):
        for batch in torch.randperm(len(items), generator=generator).split(batch_size):
            optimizer.zero_grad()
            scores = score(bank, [items[i] for i in batch.tolist()], name, pad_id)
            pairs = zip(scores, targets[batch].to(bank.device), strict=True)
            loss = torch.stack([_row_loss(row, target) for row, target in pairs]).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    expert.requires_grad_(False).eval()
    return losses


def _row_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Compute the cross-entropy of a row's label, or the mean over the tokens of its answer."""
    return F.cross_entropy(scores, target) if scores.ndim == 1 else -scores[:, 0].mean()


@torch.no_grad()
def bare_features(bank: Bank, items: Sequence[Item], pad_id: int) -> Tensor:
    """Return the pooled last hidden states of the base without experts, (sequences, width), fp32, on its device.

    ``Head.fit_scale`` takes them. The sequences are in the order of the rows: one per row, or in multiple choice
    one per option. Pooling is the bank's.
    """
    sequences = [tokens for item in items for tokens in item.options or (item.whole,)]
    parts = []
    for start in range(0, len(sequences), 64):
        inputs = collate(sequences[start : start + 64], pad_id, bank.device)
        parts.append(pool(bank.model(**inputs).last_hidden_state, inputs["attention_mask"], bank.pooling))
    return torch.cat(parts)
