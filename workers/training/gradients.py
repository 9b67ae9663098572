"""The gradients of one training step: batches of one or several experts through the bank, in micro-batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from operator import add, itemgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.bank import Bank
from ttmoe.row_dropout import dropout_keys
from ttmoe.scoring import ScoreInputs, score_batch, score_inputs
from ttmoe.transfer import tensor_on
from workers.training.batches import TokenizedRows
from workers.training.engines.engine import SINGLE_PROCESS, Engine
from workers.training.expert_loss import expert_loss
from workers.training.graphs import Graphs, Tensors


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
    bank: Bank,
    batches: Sequence[ExpertBatch],
    pad_id: int,
    *,
    depth: int,
    micro_batch: int | None,
    graphs: Graphs | None = None,
    engine: Engine = SINGLE_PROCESS,
) -> list[PassStats]:
    """Add the gradient of each batch's mean loss to its expert's parameters.

    Of several processes, each adds the part of its share of the rows; the losses are shares too. The numbers of tokens
    are those of all processes.

    Args:
        bank: Bank that holds the experts.
        batches: One batch for each expert. Either all of them have stored trunk states of this depth, or none has.
        pad_id: Token id used for padding.
        depth: Depth of the trunk. Without stored states it is computed here.
        micro_batch: Rows that pass through the model at once, over all batches; None passes all rows at once. Each of
            several processes passes so many.
        graphs: Graphs of earlier passes, for passes that keep a GPU waiting for the host.
        engine: How this process trains.

    Returns:
        Statistics of each batch, in order.
    """
    stats = [PassStats(torch.zeros((), device=bank.device)) for _ in batches]
    for parts in _micro_batches(batches, micro_batch, engine.size):
        micro, counts = parts[engine.rank], True
        if not micro:  # fewer rows than processes; all of them take part in every pass
            micro, counts = parts[0], False
        longest = _longest(batches, micro)
        length, most = longest, max(batches[index].rows.longest for index in micro)
        if graphs:
            length = graphs.padded_length(longest, most, sum(map(len, micro.values())))
        inputs = _pass_inputs(bank, batches, micro, pad_id, depth, length, most)
        key = _key_of_pass(batches, micro, inputs) if graphs and counts else None

        def compute(
            tensors: Tensors, micro: MicroBatch = micro, inputs: PassInputs = inputs, counts: bool = counts
        ) -> list[Tensor]:
            parts = _pass_losses(bank, batches, micro, inputs.with_tensors(tensors), counts)
            reduce(add, parts.values()).backward()  # type: ignore[no-untyped-call]
            return [loss.detach() for loss in parts.values()]

        losses = graphs.run(key, inputs.tensors(), compute) if graphs and key else compute(inputs.tensors())
        for index, loss in zip(micro, losses, strict=True):
            stats[index].loss += loss
        for number, part in enumerate(parts):
            if part:
                _count_tokens(stats, batches, part, inputs.scored if number == engine.rank else None)
    return stats


def _micro_batches(batches: Sequence[ExpertBatch], size: int | None, processes: int) -> Iterator[list[MicroBatch]]:
    """Yield the micro-batches of all processes; a process without rows has an empty one."""
    rows = [(index, row) for index, batch in enumerate(batches) for row in batch.row_numbers]
    size = size * processes if size else len(rows)
    for start in range(0, len(rows), size):
        parts = [rows[start : start + size][number::processes] for number in range(processes)]
        yield [{index: [row for _, row in group] for index, group in groupby(part, key=itemgetter(0))}
               for part in parts]  # fmt: skip


def _longest(batches: Sequence[ExpertBatch], micro: MicroBatch) -> int:
    return max(batches[index].rows.lengths[row] for index, rows in micro.items() for row in rows)


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
    return _pass_losses(bank, batches, micro, _pass_inputs(bank, batches, micro, pad_id, depth))


@dataclass(frozen=True)
class PassInputs:
    """The rows of a pass on the device, and the right class or option of each, (rows,)."""

    scored: ScoreInputs
    targets: Tensor

    def tensors(self) -> Tensors:
        """Return all tensors, by name."""
        rest = {"targets": self.targets, "states": self.scored.states, "keys": self.scored.dropout_keys}
        return {**self.scored.tokens, **{name: value for name, value in rest.items() if value is not None}}

    def with_tensors(self, tensors: Tensors) -> PassInputs:
        """Return these inputs with other values."""
        tokens = {name: tensors[name] for name in self.scored.tokens}
        scored = replace(self.scored, tokens=tokens, states=tensors.get("states"), dropout_keys=tensors.get("keys"))
        return PassInputs(scored, tensors["targets"])


def _pass_inputs(
    bank: Bank,
    batches: Sequence[ExpertBatch],
    micro: MicroBatch,
    pad_id: int,
    depth: int,
    length: int = 0,
    packed_length: int = 0,
) -> PassInputs:
    items = [batches[index].rows.items[row] for index, rows in micro.items() for row in rows]
    names = [batches[index].name for index, rows in micro.items() for _ in rows]
    labels = [batches[index].rows.labels[row] for index, rows in micro.items() for row in rows]
    states = _concatenate([batches[index].rows.gather_states(rows, bank.device) for index, rows in micro.items()])
    keys = torch.cat([_dropout_keys(batches[index], rows) for index, rows in micro.items()])
    scored = score_inputs(bank, items, names if len(micro) > 1 else names[0], pad_id, states=states, depth=depth,
                          dropout_keys=keys, length=length, packed_length=packed_length)  # fmt: skip
    return PassInputs(scored, tensor_on(bank.device, labels))


def _pass_losses(
    bank: Bank, batches: Sequence[ExpertBatch], micro: MicroBatch, inputs: PassInputs, counts: bool = True
) -> dict[int, Tensor]:
    sizes = [len(rows) for rows in micro.values()]
    scores = score_batch(bank, inputs.scored).split(sizes)
    losses = {}
    for index, part, targets in zip(micro, scores, inputs.targets.split(sizes), strict=True):
        loss = expert_loss(part, targets, batches[index].label_smoothing)
        share = counts * len(targets) / len(batches[index].row_numbers)
        losses[index] = loss if share == 1 else loss * share
    return losses


def _key_of_pass(batches: Sequence[ExpertBatch], micro: MicroBatch, inputs: PassInputs) -> Hashable:
    """Return what a pass must have in common with another for one graph to compute both; None if none can.

    What is not among the pass's tensors is part of a graph: the numbers of rows and options, and how they are weighted.
    """
    scored = inputs.scored
    options = {count for count, outputs in zip(scored.sequences, scored.outputs, strict=True) if outputs == 1}
    if not all(scored.outputs) or len(options) > 1:
        return None
    experts = tuple((batches[i].name, len(rows), len(batches[i].row_numbers), batches[i].label_smoothing)
                    for i, rows in micro.items())  # fmt: skip
    return experts, scored.depth, tuple((name, tuple(value.shape)) for name, value in inputs.tensors().items())


def _dropout_keys(batch: ExpertBatch, rows: Sequence[int]) -> Tensor:
    return dropout_keys(batch.seed, batch.step, batch.rows.sequence_numbers(rows))


def _concatenate(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate states of several splits, padded to the longest sequence."""
    states = [part for part in parts if part is not None]
    if len(states) < 2:
        return states[0] if states else None
    longest = max(part.shape[1] for part in states)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in states])


def _count_tokens(
    stats: list[PassStats], batches: Sequence[ExpertBatch], micro: MicroBatch, scored: ScoreInputs | None
) -> None:
    """Add the tokens of a pass; of another process's, without its inputs, those that it has if it packs nothing."""
    passed: Mapping[str, int] = {batches[index].name: len(batches[index].rows.sequence_numbers(rows))
                                 for index, rows in micro.items()}  # fmt: skip
    length = _longest(batches, micro)
    if scored:
        rows, length = scored.tokens["input_ids"].shape  # of several experts, each row is one's
        passed = Counter([scored.names] * rows if isinstance(scored.names, str) else scored.names)
    for index, numbers in micro.items():
        stats[index].real_tokens += sum(batches[index].rows.token_counts[row] for row in numbers)
        stats[index].processed_tokens += length * passed[batches[index].name]


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
