"""Copies from main memory to a device that do not make the host wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    # A copy to main memory must be complete when it is returned.
    return values.to(device, non_blocking=torch.device(device).type != "cpu")


def constant_on(device: torch.device, values: tuple[Any, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Return what ``tensor_on`` does, for values that many passes share. On a GPU they are copied once.

    The tensor must not be changed. A CUDA graph may contain it, since nothing is copied while it is recorded; within
    ``constants_used`` the graph learns which ones to keep.
    """
    if device.type != "cuda":
        return tensor_on(device, values, dtype)
    kept = _kept_on(device, values, tuple(map(type, values)), dtype)
    for used in _collecting:
        used.append(kept)
    return kept


_collecting: list[list[Tensor]] = []


@contextmanager
def constants_used() -> Iterator[list[Tensor]]:
    """Yield a list to which the constants that are used within this context are added."""
    used: list[Tensor] = []
    _collecting.append(used)
    try:
        yield used
    finally:
        _collecting.remove(used)


@lru_cache(maxsize=4096)
def _kept_on(
    device: torch.device, values: tuple[Any, ...], types: tuple[type, ...], dtype: torch.dtype | None
) -> Tensor:
    # The types are part of the key because 1 and 1.0 are equal, and give tensors of different dtypes.
    with torch.inference_mode(False):  # a tensor of inference mode could not be saved for a backward pass
        return tensor_on(device, values, dtype)


def tensor_on(device: torch.device | str, values: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on ``device`` of Python numbers, as ``torch.tensor`` makes it, without making the host wait."""
    return to_device(torch.tensor(values, dtype=dtype), device)
