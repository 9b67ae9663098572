"""Tensor trains as low-rank updates: cores to factors, the papers' contraction, and TT-SVD.

Cores are tensors (..., left bond, n, right bond), input cores G1..Gp first, then output cores H1..Hq, with
any common leading dimensions (one for each layer or expert that shares a shape). They stand for the update dW
(out, in) with

    dW[o, i] = G1[:, i1, :] G2[:, i2, :] ... Gp[:, ip, :] H1[:, o1, :] ... Hq[:, oq, :]
    i = i1 + m1 (i2 + m2 (i3 + ...))
    o = ((o1 n2 + o2) n3 + ...) + oq

a product of matrices. The first input core acts on the fastest-varying part of the input index, the first
output core is the slowest-varying part of the output index, as in the released code of arXiv 2504.21190. Cut
at the middle bond r it is dW = B A, with A (r, in) the product of the G and B (out, r) the product of the H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttmoe.errors import InputError
from ttmoe.shapes import TTShape


def factors(cores: Sequence[Tensor], split: int) -> tuple[Tensor, Tensor]:
    """The two factors of the update: A (..., r, in) and B (..., out, r), with update = B A.

    ``split`` is the number of input cores. Costs about 2 r² (in + out) multiplications, and one batched
    product a core whatever the leading dimensions. B is the transposed view of a contiguous (..., r, out).
    """
    inward = [core.transpose(-3, -1) for core in reversed(cores[:split])]
    return _chain(inward), _chain(cores[split:]).mT


def _chain(cores: Sequence[Tensor]) -> Tensor:
    """Contract cores that end in a bond of 1 into (..., first bond, product of n), first core slowest."""
    # From the end whose bond is 1: every step is then one product of a small matrix (left n, right) with the
    # wide state (right, done), whose result is already in index order. Only input cores, a few kilobytes, are
    # ever copied.
    state = cores[-1].flatten(-2)
    for core in reversed(cores[:-1]):
        state = (core.flatten(-3, -2) @ state).unflatten(-2, core.shape[-3:-1]).flatten(-2)
    return state


def update(cores: Sequence[Tensor], split: int) -> Tensor:
    """The whole update (..., out, in) that the cores stand for; see the module for the index order."""
    a, b = factors(cores, split)
    return b @ a


def contract(x: Tensor, cores: Sequence[Tensor], split: int) -> Tensor:
    """Apply the update to ``x`` (..., in) one core at a time, as the papers do; returns (..., out).

    The reference that ``factors`` is tested and measured against (arXiv 2504.21190, "tensorised
    multiplication" in its code): every step works on a state as large as the batch. Cores may have leading
    dimensions, which then are the leading dimensions of ``x`` too.
    """
    lead = cores[0].shape[:-3]
    state = x.reshape(*lead, -1, 1, x.shape[-1])  # (lead, tokens, bond, inputs that are left)
    for core in cores[:split]:
        state = state.unflatten(-1, (-1, core.shape[-2]))
        state = torch.einsum("...tlim,...lmr->...tri", state, core)
    state = state.mT  # (lead, tokens, outputs so far, bond)
    for core in cores[split:]:
        state = torch.einsum("...tol,...lnr->...tonr", state, core).flatten(-3, -2)
    return state.flatten(-2).reshape(*x.shape[:-1], state.shape[-2])


def tt_svd(matrix: Tensor, shape: TTShape) -> tuple[list[Tensor], float]:
    """Cores of ``shape`` for a matrix (out, in), and their error relative to it in the Frobenius norm.

    TT-SVD (Oseledets 2011, algorithm 1), computed in double precision and returned in the matrix's precision,
    at least fp32. The squared error is at most the sum over bonds of the squared singular values cut there
    (theorem 2.2), hence at most sqrt(cores - 1) times that of the best train of this shape (corollary 2.4):
    with full rank, or a matrix that is such a train, nothing is cut. Raises ``InputError`` for a matrix of
    another shape, or not finite.
    """
    if matrix.ndim != 2:
        raise InputError(f"TT-SVD needs a matrix (out, in), not a tensor of shape {tuple(matrix.shape)}")
    shape.require(matrix.shape[1], matrix.shape[0])
    if not torch.isfinite(matrix).all():
        raise InputError("the matrix holds NaN or infinity", fix="give one whose values are finite")
    rest = _unfolded(matrix.double(), shape)
    cores: list[Tensor] = []
    for left, factor, right in shape.core_shapes[:-1]:
        u, s, vh = torch.linalg.svd(rest.reshape(left * factor, -1), full_matrices=False)
        cores.append(u[:, :right].reshape(left, factor, right))
        rest = s[:right, None] * vh[:right]
    cores.append(rest.reshape(shape.core_shapes[-1]))
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    cores = [core.to(dtype) for core in cores]
    error = (update([core.double() for core in cores], shape.split) - matrix).norm().item()
    return cores, error / max(matrix.double().norm().item(), torch.finfo(torch.double).tiny)


def _unfolded(matrix: Tensor, shape: TTShape) -> Tensor:
    """The matrix (out, in) with its index in core order: i1, ..., ip, o1, ..., oq, flattened."""
    # The input index is split slowest first, so ip comes first and has to be turned round.
    tensor = matrix.T.reshape(*reversed(shape.inputs), -1)
    order = (*reversed(range(shape.split)), shape.split)
    return tensor.permute(order).reshape(math.prod(shape.inputs) * math.prod(shape.outputs))
