"""Passes of one task's rows through the bank, without dropout: moments of an expert, and the measuring of many."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.batching import batch_tokens, split_by_tokens
from ttmoe.encoding import collate
from ttmoe.moments import Moments, collecting_moments
from ttmoe.scoring import score
from workers.training.batches import TokenizedRows, item_sequences, longest_first, token_batches
from workers.training.evaluation import accuracy_and_loss, to_host
from workers.training.gradients import ExpertBatch, batch_losses
from workers.training.settings import TrainSettings


def trunk_depth(bank: Bank, name: str, rows: TokenizedRows) -> int:
    """Return the depth of the rows' stored trunk states, or of the trunk below the expert if none are stored."""
    return rows.states.depth if rows.states else bank.expert(name).adapter.lowest_layer


def split_for_gradients(rows: TokenizedRows, numbers: Sequence[int], settings: TrainSettings) -> Iterator[list[int]]:
    """Split row numbers into passes that need no more memory than those of a training with these settings.

    Layers are recomputed in trainings only, so with ``checkpointing`` one row passes at a time.
    """
    most = settings.rows_at_once or (None if settings.batch_tokens else settings.batch_size)
    most_rows = 1 if settings.recomputes else most
    return split_by_tokens(numbers, rows.lengths, rows.sequence_counts, settings.batch_tokens or sys.maxsize, most_rows)


def training_moments(
    bank: Bank,
    name: str,
    rows: TokenizedRows,
    pad_id: int,
    settings: TrainSettings,
    count: int,
    on_batch: Callable[[], None],
) -> Moments:
    """Return the moments of an expert over rows drawn from its training split.

    Args:
        bank: Bank that holds the expert.
        name: The expert.
        rows: The training split.
        pad_id: Token id used for padding.
        settings: Settings of the expert's training: the seed draws the rows.
        count: Number of rows, at most.
        on_batch: Called after each pass, for example to report a heartbeat.
    """
    seed, depth = settings.seed or 0, trunk_depth(bank, name, rows)
    drawn = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    drawn.sort(key=lambda row: (-rows.lengths[row], row))
    with collecting_moments(bank, name) as collector:
        for numbers in split_for_gradients(rows, drawn, settings):
            batch = ExpertBatch(name, rows, numbers, settings.label_smoothing, seed, 0)
            mean = batch_losses(bank, [batch], {0: numbers}, pad_id, depth)[0]
            collector.add(mean * len(numbers))
            on_batch()
    return collector.moments


@torch.no_grad()
def measure_experts(
    bank: Bank, names: Sequence[str], rows: TokenizedRows, pad_id: int, on_batch: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Measure experts of one task on a split, in batches mixed of all of them over the same trunk states.

    On a CPU (MiniLM, five experts, 400 rows of TREC) it takes 3.4 s, and 4.0 s with one expert after another on the
    same states. Where no states are stored it takes 3.6 s, and 5.4 s with each expert alone.

    Args:
        bank: Bank that holds the experts, in eval mode.
        names: The experts, which adapt the same layers.
        rows: Rows of the split.
        pad_id: Token id used for padding.
        on_batch: Called after each batch, for example to report a heartbeat.

    Returns:
        For each expert ``accuracy`` (0 to 1) and ``loss``, as ``evaluate`` measures them.
    """
    order: list[tuple[str, int]] = []
    scores: list[Tensor] = []
    depth = min(trunk_depth(bank, name, rows) for name in names)
    max_tokens = max(1, batch_tokens(bank.device.type) // len(names))
    for batch in token_batches(rows, longest_first(rows), max_tokens):
        items, states = [rows.items[row] for row in batch], rows.gather_states(batch, bank.device)
        if depth and states is None:
            sequences = [tokens for item in items for tokens in item_sequences(item)]
            states = bank.trunk(depth).states(collate(sequences, pad_id, bank.device))
        if states is not None:
            states = states.repeat(len(names), 1, 1)
        each = [name for name in names for _ in items]
        scores += score(bank, items * len(names), each, pad_id, states=states, depth=depth)
        order += zip(each, batch * len(names), strict=True)
        on_batch()
    found = dict(zip(order, to_host(scores), strict=True))
    return {
        name: accuracy_and_loss([found[name, row] for row in range(len(rows))], rows.labels, rows.last_answers)
        for name in names
    }
