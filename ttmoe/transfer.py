"""Copies from main memory to a device that do not make the host wait."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Return ``values`` on ``device``.

    A copy to a GPU comes from pinned memory: only then does the host go on while it is made. torch keeps the pinned
    memory until the copy is complete.
    """
    if values.device.type == "cpu" and torch.device(device).type == "cuda" and torch.cuda.is_available():
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a copy from main memory cannot be part of a CUDA graph")
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def constant_on(device: torch.device, values: tuple[Any, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Return what ``tensor_on`` does, for values that many passes share. On a GPU they are copied once.

    The tensor must not be changed. A CUDA graph may contain it, since nothing is copied while it is recorded.
    """
    return _kept_on(device, values, dtype) if device.type == "cuda" else tensor_on(device, values, dtype)


@lru_cache(maxsize=4096)
def _kept_on(device: torch.device, values: tuple[Any, ...], dtype: torch.dtype | None) -> Tensor:
    with torch.inference_mode(False):  # a tensor of inference mode could not be saved for a backward pass
        return tensor_on(device, values, dtype)


def tensor_on(device: torch.device | str, values: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on ``device`` of Python numbers, as ``torch.tensor`` makes it, without making the host wait."""
    return to_device(torch.tensor(values, dtype=dtype), device)
