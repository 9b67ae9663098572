"""Data parallelism: each process holds the whole base and computes a share of every batch.

An expert has some tens of thousands of trained numbers. Their gradients are summed once a step, in one collective,
after the backward passes; torch's ``DistributedDataParallel``, which overlaps both, would wrap every forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ttmoe.base import Base, load_body
from ttmoe.expert import Expert
from workers.training.engines.engine import Value
from workers.training.optimizer import Optimizer, make_optimizer
from workers.training.settings import TrainSettings


class DataParallel:
    """The engine of several processes with the whole base in each. The process must be in a group."""

    shards_base, records_graphs = False, True

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def load_body(self, base: Base, device: str) -> nn.Module:
        """Load the base."""
        return load_body(base, device)

    def make_optimizer(self, expert: Expert, settings: TrainSettings) -> Optimizer:
        """Return AdamW; all processes take the same steps."""
        return make_optimizer(expert, settings)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all processes, in one collective."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is set in any process. The GPU is not waited for."""
        counts = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(counts)
        return [count > 0 for count in counts.tolist()]

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Return what ``make`` returns in process 0."""
        values = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes."""
        values: list[Value | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]
