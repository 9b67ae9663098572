"""Reading of training losses from the device without making it wait for the host."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


def steps_behind(device: torch.device) -> int:
    """Return how many steps late losses are read on this device.

    On a GPU, the host queues the next step before it reads the loss of the last one, so that the GPU always has work.
    """
    return 0 if device.type == "cpu" else 1


class LossReader(Generic[Key]):
    """Losses on their way from the device, step by step."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda" and torch.cuda.is_available()
        self._steps: list[tuple[list[Key], Tensor, torch.cuda.Event | None]] = []

    def add(self, losses: Mapping[Key, Tensor]) -> None:
        """Start copying the losses of a step, tensors without dimensions."""
        if not losses:
            return
        values, copied = torch.stack(list(losses.values())), None
        if self._on_gpu:
            values = torch.empty(len(losses), pin_memory=True).copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._steps.append((list(losses), values, copied))

    def read(self, behind: int) -> dict[Key, float]:
        """Return the losses that were not read yet, except those of the last ``behind`` steps; wait for them."""
        count = max(0, len(self._steps) - behind)
        read: dict[Key, float] = {}
        for keys, values, copied in self._steps[:count]:
            if copied is not None:
                copied.synchronize()
            read |= zip(keys, values.tolist(), strict=True)
        del self._steps[:count]
        return read
