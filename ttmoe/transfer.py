"""Copies from main memory to a device that do not make the host wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Return ``values``, which are in main memory, on ``device``.

    A copy to a GPU comes from pinned memory: only then does the host go on while it is made. torch keeps the pinned
    memory until the copy is complete.
    """
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def tensor_on(device: torch.device | str, values: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on ``device`` of Python numbers, as ``torch.tensor`` makes it, without making the host wait."""
    return to_device(torch.tensor(values, dtype=dtype), device)
