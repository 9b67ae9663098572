"""Dropout of rows that belong to different experts."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_rows(x: Tensor, rates: Tensor) -> Tensor:
    """X (rows, ...) with each row dropped at its own rate of rates (rows,), and scaled to keep its mean."""
    keep = (1 - rates).reshape(-1, *[1] * (x.ndim - 1))
    return x * (torch.bernoulli(keep.expand(x.shape)) / keep).to(x.dtype)
