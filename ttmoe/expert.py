"""What a bank holds: experts, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ttmoe.adapter import Adapter
from ttmoe.head import Head


class Expert(nn.Module):
    """What one task adds to the base: an adapter, and a linear head (width -> classes) on the pooled top states.

    The head of an expert that writes text has no outputs: it speaks with the base's own ``Words``.
    It keeps its precision (fp32) when the bank around it is cast to another dtype.
    """

    def __init__(self, adapter: Adapter, head: Head) -> None:
        super().__init__()
        self.adapter, self.head = adapter, head

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Expert:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


class Experts(nn.ModuleDict):
    """Experts by name. A task may be called ``train`` or ``v1.0``, names that torch keeps to itself."""

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module
