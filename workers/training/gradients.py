"""The gradients of one step: the batches of one expert or several through the bank, in pieces that fit the memory."""

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
from ttmoe.scoring import score
from workers.training.batches import TokenizedRows


@dataclass(frozen=True)
class ExpertBatch:
    """One expert's part of a step: the numbers of its rows in the batch."""

    name: str
    rows: TokenizedRows
    batch: list[int]
    smoothing: float


@dataclass
class PassStats:
    """What went through the model for one share: its mean loss, and its real and processed (padded) tokens."""

    loss: float
    real: int = 0
    processed: int = 0


MicroBatch = dict[int, list[int]]
"""Rows that go through the model at once, by the place of their share."""


def add_gradients(
    bank: Bank, shares: Sequence[ExpertBatch], pad_id: int, *, depth: int, at_once: int | None
) -> list[PassStats]:
    """Add to each share's expert the gradient of the share's mean loss, ``at_once`` rows at a time (None: all).

    All shares have trunk states of this ``depth``, or none has any; then the trunk is worked out for them.
    """
    found, losses = [PassStats(0.0) for _ in shares], []
    for piece in _pieces(shares, at_once):
        parts = _losses(bank, shares, piece, pad_id, depth)
        reduce(add, parts.values()).backward()  # type: ignore[no-untyped-call]
        losses.append({place: loss.detach() for place, loss in parts.items()})
        _count(found, shares, piece)
    places = [place for part in losses for place in part]
    values = torch.stack([loss for part in losses for loss in part.values()]).tolist()  # one wait for the device
    for place, value in zip(places, values, strict=True):
        found[place].loss += value
    return found


def _pieces(shares: Sequence[ExpertBatch], at_once: int | None) -> Iterator[MicroBatch]:
    rows = [(place, row) for place, share in enumerate(shares) for row in share.batch]
    size = at_once or len(rows)
    for start in range(0, len(rows), size):
        groups = groupby(rows[start : start + size], key=itemgetter(0))
        yield {place: [row for _, row in group] for place, group in groups}


def _losses(bank: Bank, shares: Sequence[ExpertBatch], piece: MicroBatch, pad_id: int, depth: int) -> dict[int, Tensor]:
    """Each share's loss on its rows in this piece, weighted by their part of its batch."""
    items = [shares[place].rows.items[row] for place, rows in piece.items() for row in rows]
    each = [shares[place].name for place, rows in piece.items() for _ in rows]
    states = _gathered([shares[place].rows.gather_states(rows, bank.device) for place, rows in piece.items()])
    rest = iter(score(bank, items, each if len(piece) > 1 else each[0], pad_id, states=states, depth=depth))
    losses = {}
    for place, rows in piece.items():
        share = shares[place]
        scores, labels = [next(rest) for _ in rows], [share.rows.labels[row] for row in rows]
        loss = answer_loss(scores) if scores[0].ndim == 2 else expert_loss(scores, labels, share.smoothing)
        losses[place] = loss if len(rows) == len(share.batch) else loss * (len(rows) / len(share.batch))
    return losses


def _gathered(parts: Sequence[Tensor | None]) -> Tensor | None:
    """States of several splits as one tensor, padded to the longest."""
    there = [part for part in parts if part is not None]
    if len(there) < 2:
        return there[0] if there else None
    longest = max(part.shape[1] for part in there)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in there])


def _count(found: list[PassStats], shares: Sequence[ExpertBatch], piece: MicroBatch) -> None:
    longest = max(shares[place].rows.lengths[row] for place, rows in piece.items() for row in rows)
    for place, numbers in piece.items():
        rows = shares[place].rows
        found[place].real += sum(rows.tokens[row] for row in numbers)
        found[place].processed += longest * sum(rows.starts[row + 1] - rows.starts[row] for row in numbers)


def expert_loss(scores: list[Tensor], labels: list[int], smoothing: float) -> Tensor:
    """Mean cross-entropy over rows that may have different numbers of options."""
    targets = torch.tensor(labels, device=scores[0].device)
    if len({len(s) for s in scores}) == 1:
        return F.cross_entropy(torch.stack(scores), targets, label_smoothing=smoothing)
    each = [F.cross_entropy(s, t, label_smoothing=smoothing) for s, t in zip(scores, targets, strict=True)]
    return torch.stack(each).mean()


def answer_loss(scores: list[Tensor]) -> Tensor:
    """Mean over rows of the mean cross-entropy of a row's answer tokens, whose log-probabilities are column 0.

    Labels are not smoothed here: that would take the logits of the whole vocabulary.
    """
    return torch.stack([-row[:, 0].mean() for row in scores]).mean()


@contextmanager
def activation_checkpointing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Within this context the model's layers are recomputed in the backward pass, if ``wanted``."""
    if not wanted:
        yield
        return
    # transformers has renamed it, and warns of the old name.
    named = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{named}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{named}_checkpointing_disable")()
