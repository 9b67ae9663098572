"""The core-by-core contraction of a tensor train: the reference for the two factors in ``ttmoe.tensor_train``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def contract(x: Tensor, cores: Sequence[Tensor], split: int) -> Tensor:
    """Apply the update to x (..., in) one core at a time and return (..., out).

    This is the tensorised multiplication of arXiv 2504.21190; every step works on a state as large as the batch.
    ``split`` is the number of input cores. Leading dimensions of the cores are leading dimensions of ``x`` too.
    """
    lead = cores[0].shape[:-3]
    state = x.reshape(*lead, -1, 1, x.shape[-1])  # (lead, tokens, bond, remaining inputs)
    for core in cores[:split]:
        state = state.unflatten(-1, (-1, core.shape[-2]))
        state = torch.einsum("...tlim,...lmr->...tri", state, core)
    state = state.mT  # (lead, tokens, outputs so far, bond)
    for core in cores[split:]:
        state = torch.einsum("...tol,...lnr->...tonr", state, core).flatten(-3, -2)
    return state.flatten(-2).reshape(*x.shape[:-1], state.shape[-2])
