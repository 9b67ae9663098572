"""Accuracy of an expert on a split."""

from __future__ import annotations

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.encoding import Item
from ttmoe.scoring import score
from workers.batches import Rows, evaluation_batches


@torch.no_grad()
def scores_of(bank: Bank, name: str, items: list[Item], pad_id: int, size: int = 128) -> list[Tensor]:
    """Scores of every item through expert ``name``, in order, on the CPU."""
    found: dict[int, Tensor] = {}
    for batch in evaluation_batches(items, size):
        found.update(zip(batch, score(bank, [items[i] for i in batch], name, pad_id), strict=True))
    return [found[i].cpu() for i in range(len(items))]


def evaluate(bank: Bank, name: str, rows: Rows, pad_id: int) -> dict[str, float]:
    """``accuracy`` and mean ``loss`` of expert ``name``; the bank is left in the mode it was in."""
    training = bank.training
    bank.eval()
    scores = scores_of(bank, name, rows.items, pad_id)
    bank.train(training)
    right = [int(s.argmax()) == label for s, label in zip(scores, rows.labels, strict=True)]
    losses = [float(-s.log_softmax(-1)[label]) for s, label in zip(scores, rows.labels, strict=True)]
    return {"accuracy": sum(right) / len(right), "loss": sum(losses) / len(losses)}
