"""The gradients of one training step: batches of one or several experts through the bank, in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, groupby
from operator import add, itemgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.bank import Bank
from ttmoe.row_dropout import dropout_keys
from ttmoe.scoring import BatchScores, score_batch
from ttmoe.transfer import tensor_on
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
    """Statistics of one expert's batch: its mean loss, and its numbers of real and of processed (padded) tokens.

    The loss is a tensor without dimensions, on the device: reading it makes the host wait for the passes.
    """

    loss: Tensor
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
    stats = [PassStats(torch.zeros((), device=bank.device)) for _ in batches]
    for micro in _micro_batches(batches, micro_batch):
        parts = batch_losses(bank, batches, micro, pad_id, depth)
        reduce(add, parts.values()).backward()  # type: ignore[no-untyped-call]
        for index, loss in parts.items():
            stats[index].loss += loss.detach()
        _count_tokens(stats, batches, micro)
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
    scores = score_batch(bank, items, sole_or_each, pad_id, states=states, depth=depth, dropout_keys=keys)
    losses = {}
    for (index, rows), part in zip(micro.items(), scores.split([len(rows) for rows in micro.values()]), strict=True):
        batch = batches[index]
        loss = expert_loss(part, [batch.rows.labels[row] for row in rows], batch.label_smoothing)
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


def expert_loss(scores: BatchScores, labels: list[int], label_smoothing: float) -> Tensor:
    """Return the mean over rows of one expert of their cross-entropy, or of its mean over a row's answer tokens.

    Args:
        scores: Scores of the rows.
        labels: Right class or option of each row.
        label_smoothing: Share of a label spread over the other classes or options. Answer tokens are not smoothed: that
            would require the logits of the whole vocabulary.
    """
    outputs, device = scores.outputs[0], scores.heads.device
    if not outputs:
        weights = [1 / length / len(labels) for length in scores.answer_lengths for _ in range(length)]
        return -(scores.answers[:, 0] * tensor_on(device, weights)).sum()
    targets = tensor_on(device, labels)
    if outputs > 1:
        return F.cross_entropy(scores.heads[:, :outputs], targets, label_smoothing=label_smoothing)
    return _option_loss(scores.heads[:, 0], scores.sequences, targets, label_smoothing)


def _option_loss(scores: Tensor, options: list[int], targets: Tensor, label_smoothing: float) -> Tensor:
    """Return the mean cross-entropy of rows with these numbers of options; ``scores`` has all options of all rows."""
    most = max(options)
    if min(options) == most:
        return F.cross_entropy(scores.view(-1, most), targets, label_smoothing=label_smoothing)
    firsts = accumulate(options, initial=0)
    # Of shorter rows, the last option stands in the columns that they lack.
    indexes = [[first + min(i, count - 1) for i in range(most)] for first, count in zip(firsts, options, strict=False)]
    lacks = tensor_on(scores.device, [[i >= count for i in range(most)] for count in options])
    logs = scores[tensor_on(scores.device, indexes)].masked_fill(lacks, -torch.inf).log_softmax(1)
    right = logs.gather(1, targets.unsqueeze(1)).squeeze(1)
    spread = logs.masked_fill(lacks, 0.0).sum(1) / tensor_on(scores.device, options)
    return -((1 - label_smoothing) * right + label_smoothing * spread).mean()


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
