"""Tensor trains as low-rank updates of a linear map: conversions from cores, and TT-SVD.

Cores are tensors (..., left bond, n, right bond), input cores G1..Gp first, then output cores H1..Hq, with any common
leading dimensions (one for each layer or expert that shares a shape). They represent the update dW (out, in) with

    dW[o, i] = G1[:, i1, :] G2[:, i2, :] ... Gp[:, ip, :] H1[:, o1, :] ... Hq[:, oq, :]
    i = i1 + m1 (i2 + m2 (i3 + ...))
    o = ((o1 n2 + o2) n3 + ...) + oq

a product of matrices. The first input core indexes the fastest-varying part of the input index, the first output core
the slowest-varying part of the output index, as in the released code of arXiv 2504.21190. Cut at the middle bond r, it
is dW = B A, with A (r, in) the product of the G and B (out, r) the product of the H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttmoe.errors import InputError
from ttmoe.shapes import TTShape


def cores_to_factors(cores: Sequence[Tensor], split: int) -> tuple[Tensor, Tensor]:
    """Return the two factors of the update, with update = B A.

    Costs about 2 r² (in + out) multiplications, and one batched product per core whatever the leading dimensions.

    Args:
        cores: Cores (..., left bond, n, right bond).
        split: Number of input cores.

    Returns:
        A (..., r, in), and B (..., out, r) as the transposed view of a contiguous tensor (..., r, out).
    """
    inputs = [core.transpose(-3, -1) for core in reversed(cores[:split])]
    return contract_cores(inputs), contract_cores(cores[split:]).mT


def contract_cores(cores: Sequence[Tensor]) -> Tensor:
    """Return the product (..., first bond, product of n) of cores whose last bond is 1, the first core slowest.

    Args:
        cores: Cores (..., left bond, n, right bond).
    """
    # Starting at the bond of 1, every step multiplies a small matrix (left n, right) with the wide state (right, done),
    # and the result is already in index order. Only input cores, a few kilobytes, are ever copied.
    state = cores[-1].flatten(-2)
    for core in reversed(cores[:-1]):
        state = (core.flatten(-3, -2) @ state).unflatten(-2, core.shape[-3:-1]).flatten(-2)
    return state


def cores_to_update(cores: Sequence[Tensor], split: int) -> Tensor:
    """Return the full update (..., out, in) of the cores; ``split`` is the number of input cores."""
    a, b = cores_to_factors(cores, split)
    return b @ a


def tt_svd(matrix: Tensor, shape: TTShape) -> tuple[list[Tensor], float]:
    """Approximate a matrix by a tensor train of ``shape`` with TT-SVD (Oseledets 2011, algorithm 1).

    Computed in double precision. The squared error is at most the sum over bonds of the squared singular values cut
    there (theorem 2.2), hence the error is at most sqrt(cores - 1) times that of the best train of this shape
    (corollary 2.4). With full rank, or for a matrix that is such a train, nothing is cut.

    Args:
        matrix: Matrix (out, in).
        shape: Factors and rank of the train.

    Returns:
        The cores in the matrix's dtype, at least fp32, and their error relative to the matrix in the Frobenius norm.

    Raises:
        InputError: If the matrix has another shape or contains NaN or infinity.
    """
    if matrix.ndim != 2:
        raise InputError(f"TT-SVD needs a matrix (out, in), not a tensor of shape {tuple(matrix.shape)}")
    shape.require_widths(matrix.shape[1], matrix.shape[0])
    if not torch.isfinite(matrix).all():
        raise InputError("the matrix contains NaN or infinity", fix="pass a matrix of finite values")
    rest = _flatten_in_core_order(matrix.double(), shape)
    cores: list[Tensor] = []
    for left, factor, right in shape.core_shapes[:-1]:
        u, s, vh = torch.linalg.svd(rest.reshape(left * factor, -1), full_matrices=False)
        cores.append(u[:, :right].reshape(left, factor, right))
        rest = s[:right, None] * vh[:right]
    cores.append(rest.reshape(shape.core_shapes[-1]))
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    cores = [core.to(dtype) for core in cores]
    error = (cores_to_update([core.double() for core in cores], shape.split) - matrix).norm().item()
    return cores, error / max(matrix.double().norm().item(), torch.finfo(torch.double).tiny)


def _flatten_in_core_order(matrix: Tensor, shape: TTShape) -> Tensor:
    """Flatten the matrix (out, in) with its index in the order i1, ..., ip, o1, ..., oq."""
    # The input index is split slowest first, so ip comes first and the order has to be reversed.
    tensor = matrix.T.reshape(*reversed(shape.inputs), -1)
    order = (*reversed(range(shape.split)), shape.split)
    return tensor.permute(order).reshape(math.prod(shape.inputs) * math.prod(shape.outputs))
