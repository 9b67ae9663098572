"""The expert of one task, and a container of experts by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ttmoe.adapter import Adapter
from ttmoe.head import Head


class Expert(nn.Module):
    """One task's trainable modules: an adapter, and a head on the pooled last hidden states.

    An expert that generates text has a head without outputs and uses the base's ``LanguageHead``. Parameters stay in
    their dtype (fp32) when the surrounding bank is cast to another.
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
    """Experts by name. Any name is allowed, ``train`` and ``v1.0`` too, which ``nn.ModuleDict`` refuses."""

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module
