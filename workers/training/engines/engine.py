"""The interface of engines, and the engine of one process.

The loop, the order of the data, the evaluation and the checkpoints are the same under every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ttmoe.base import Base, load_body
from ttmoe.expert import Expert
from workers.training.optimizer import Optimizer, make_optimizer
from workers.training.settings import TrainSettings

Value = TypeVar("Value")


class Engine(Protocol):
    """What depends on the number of processes that train an expert together, and on where the base lies.

    With several processes, all of them call the same methods in the same order: each waits for the others.

    Attributes:
        rank: Number of this process, from 0. Process 0 writes files and reports progress.
        size: Number of processes.
        shards_base: Whether each process holds a part of the base's weights. All of them then take part in every pass.
        records_graphs: Whether passes and optimizer steps may be recorded in CUDA graphs.
    """

    rank: int
    size: int
    shards_base: bool
    records_graphs: bool

    def load_body(self, base: Base, device: str) -> nn.Module:
        """Load the base as ``ttmoe.base.load_body`` does, or this process's part of it."""

    def make_optimizer(self, expert: Expert, settings: TrainSettings) -> Optimizer:
        """Return the optimizer of an expert."""

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, on the base's device and in fp32, by its sum over all processes."""

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is set in any process."""

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Return what ``make`` returns in process 0, which alone calls it; the value is pickled."""

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in order; they are pickled."""


class SingleProcess:
    """The engine of one process, which holds the whole base."""

    rank, size, shards_base, records_graphs = 0, 1, False, True

    def load_body(self, base: Base, device: str) -> nn.Module:
        """Load the base."""
        return load_body(base, device)

    def make_optimizer(self, expert: Expert, settings: TrainSettings) -> Optimizer:
        """Return AdamW."""
        return make_optimizer(expert, settings)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Leave the tensors as they are."""

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return the flags."""
        return list(flags)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Return what ``make`` returns."""
        return make()

    def gather(self, value: Value) -> list[Value]:
        """Return the value alone."""
        return [value]


SINGLE_PROCESS: Engine = SingleProcess()


def share(engine: Engine, parts: Sequence[Value]) -> list[tuple[Value, bool]]:
    """Return the parts of some work that this process does, with whether they count.

    The last part is always that of process 0. Every process has as many parts: where there are too few, it repeats one
    that does not count, because all processes must take part in a pass through a sharded base.

    Args:
        engine: The engine.
        parts: The work; all of it in every process.
    """
    mine = [(part, True) for part in parts[::-1][engine.rank :: engine.size]][::-1]
    most = -(-len(parts) // engine.size)
    return mine + [(part, False) for part in parts[:1]] * (most - len(mine))


def sum_gradients(engine: Engine, parameters: Sequence[nn.Parameter], others: Sequence[Tensor] = ()) -> None:
    """Sum the gradients of parameters over all processes; a parameter without a gradient in one of them counts as 0.

    Args:
        engine: The engine.
        parameters: The parameters.
        others: Tensors that are summed with them.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients: list[Any] = [parameter.grad for parameter in parameters]
    engine.sum([*gradients, *others])
