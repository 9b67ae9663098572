"""Dropout with a separate rate for each row, for batches whose rows belong to different experts."""

from __future__ import annotations

import torch
from torch import Tensor


def dropout_by_row(x: Tensor, rates: Tensor) -> Tensor:
    """Return x (rows, ...) with each row dropped at its own rate and rescaled to keep its mean; ``rates``: (rows,)."""
    keep = (1 - rates).reshape(-1, *[1] * (x.ndim - 1))
    return x * (torch.bernoulli(keep.expand(x.shape)) / keep).to(x.dtype)
