"""The gradients of one training step: batches of one or several experts through the bank, in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from operator import add, itemgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.bank import Bank
from ttmoe.row_dropout import dropout_keys
from ttmoe.scoring import score
from workers.training.batches import TokenizedRows


@dataclass(frozen=True)
class ExpertBatch:
    """The batch of one expert in a training step.

    Attributes:
        name: Name of the expert in the bank.
        rows: The expert's training split.
        row_numbers: Rows of the split in this batch.
        label_smoothing: Share of a label spread over the other classes.
        seed: Seed of the expert's dropout.
        step: Number of the step.
    """

    name: str
    rows: TokenizedRows
    row_numbers: list[int]
    label_smoothing: float
    seed: int
    step: int


@dataclass
class PassStats:
    """Statistics of one expert's batch: its mean loss, and its numbers of real and of processed (padded) tokens."""

    loss: float
    real_tokens: int = 0
    processed_tokens: int = 0


MicroBatch = dict[int, list[int]]
"""Row numbers that pass through the model together, by the index of their ``ExpertBatch``."""


def add_gradients(
    bank: Bank, batches: Sequence[ExpertBatch], pad_id: int, *, depth: int, micro_batch: int | None
) -> list[PassStats]:
    """Add the gradient of each batch's mean loss to its expert's parameters.

    Args:
        bank: Bank that holds the experts.
        batches: One batch for each expert. Either all of them have stored trunk states of this depth, or none has.
        pad_id: Token id used for padding.
        depth: Depth of the trunk. Without stored states it is computed here.
        micro_batch: Rows that pass through the model at once, over all batches; None passes all rows at once.

    Returns:
        Statistics of each batch, in order.
    """
    stats, losses = [PassStats(0.0) for _ in batches], []
    for micro in _micro_batches(batches, micro_batch):
        parts = batch_losses(bank, batches, micro, pad_id, depth)
        reduce(add, parts.values()).backward()  # type: ignore[no-untyped-call]
        losses.append({index: loss.detach() for index, loss in parts.items()})
        _count_tokens(stats, batches, micro)
    indexes = [index for part in losses for index in part]
    # Copy all losses at once, so that the device is synchronised once.
    values = torch.stack([loss for part in losses for loss in part.values()]).tolist()
    for index, value in zip(indexes, values, strict=True):
        stats[index].loss += value
    return stats


def _micro_batches(batches: Sequence[ExpertBatch], size: int | None) -> Iterator[MicroBatch]:
    rows = [(index, row) for index, batch in enumerate(batches) for row in batch.row_numbers]
    size = size or len(rows)
    for start in range(0, len(rows), size):
        groups = groupby(rows[start : start + size], key=itemgetter(0))
        yield {index: [row for _, row in group] for index, group in groups}


def batch_losses(
    bank: Bank, batches: Sequence[ExpertBatch], micro: MicroBatch, pad_id: int, depth: int
) -> dict[int, Tensor]:
    """Return each batch's mean loss over its rows in a micro-batch, weighted by their share of the batch.

    Args:
        bank: As ``add_gradients`` takes it; so are ``batches``, ``pad_id`` and ``depth``.
        batches: The batches.
        micro: The rows, by the index of their batch.
        pad_id: Token id used for padding.
        depth: Depth of the trunk.
    """
    items = [batches[index].rows.items[row] for index, rows in micro.items() for row in rows]
    names = [batches[index].name for index, rows in micro.items() for _ in rows]
    states = _concatenate([batches[index].rows.gather_states(rows, bank.device) for index, rows in micro.items()])
    keys = torch.cat([_dropout_keys(batches[index], rows) for index, rows in micro.items()])
    sole_or_each = names if len(micro) > 1 else names[0]
    remaining = iter(score(bank, items, sole_or_each, pad_id, states=states, depth=depth, dropout_keys=keys))
    losses = {}
    for index, rows in micro.items():
        batch = batches[index]
        scores, labels = [next(remaining) for _ in rows], [batch.rows.labels[row] for row in rows]
        loss = answer_loss(scores) if scores[0].ndim == 2 else expert_loss(scores, labels, batch.label_smoothing)
        losses[index] = loss if len(rows) == len(batch.row_numbers) else loss * (len(rows) / len(batch.row_numbers))
    return losses


def _dropout_keys(batch: ExpertBatch, rows: Sequence[int]) -> Tensor:
    return dropout_keys(batch.seed, batch.step, batch.rows.sequence_numbers(rows))


def _concatenate(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate states of several splits, padded to the longest sequence."""
    states = [part for part in parts if part is not None]
    if len(states) < 2:
        return states[0] if states else None
    longest = max(part.shape[1] for part in states)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in states])


def _count_tokens(stats: list[PassStats], batches: Sequence[ExpertBatch], micro: MicroBatch) -> None:
    longest = max(batches[index].rows.lengths[row] for index, numbers in micro.items() for row in numbers)
    for index, numbers in micro.items():
        rows = batches[index].rows
        stats[index].real_tokens += sum(rows.token_counts[row] for row in numbers)
        stats[index].processed_tokens += longest * len(rows.sequence_numbers(numbers))


def expert_loss(scores: list[Tensor], labels: list[int], label_smoothing: float) -> Tensor:
    """Return the mean cross-entropy of rows, which may have different numbers of options.

    Args:
        scores: Scores (classes,) or (options,) of each row.
        labels: Right class or option of each row.
        label_smoothing: Share of a label spread over the other classes or options.
    """
    targets = torch.tensor(labels, device=scores[0].device)
    if len({len(s) for s in scores}) == 1:
        return F.cross_entropy(torch.stack(scores), targets, label_smoothing=label_smoothing)
    losses = [F.cross_entropy(s, t, label_smoothing=label_smoothing) for s, t in zip(scores, targets, strict=True)]
    return torch.stack(losses).mean()


def answer_loss(scores: list[Tensor]) -> Tensor:
    """Return the mean over rows of the mean cross-entropy of a row's answer tokens.

    Labels are not smoothed: that would require the logits of the whole vocabulary.

    Args:
        scores: Scores (answer tokens, 2) of each row; column 0 is the log-probability of the answer token.
    """
    return torch.stack([-row[:, 0].mean() for row in scores]).mean()


@contextmanager
def activation_checkpointing(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Recompute the model's layers in the backward pass within this context, if ``enabled``."""
    if not enabled:
        yield
        return
    # transformers renamed these methods and warns about the old names.
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{prefix}_checkpointing_disable")()
