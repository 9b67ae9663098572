"""One side of a tensor train, fitted to a matrix in a weighted norm.

A side is the list of the input cores or of the output cores, in order from the middle bond k outwards: tensors
(sites, left bond, n, right bond), of which the first left bond is k and the last right bond 1. The first core indexes
the slowest part of the width, so a side is the matrix ``contract_cores`` (sites, k, width). All is computed for all
sites at a time, in the dtype of the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttmoe.tensor_train import contract_cores

Side = list[Tensor]


def side_by_svd(target: Tensor, factors: Sequence[int], bonds: Sequence[int]) -> Side:
    """Approximate a matrix by a side with TT-SVD, from the outer end inwards, in the plain norm.

    Args:
        target: (sites, k, width).
        factors: The factors of the width, from the middle bond outwards.
        bonds: All bonds of the side, from k to 1.

    Returns:
        The cores; the rows of all but the first are orthonormal.
    """
    rest, cores = target, []
    for factor, left, right in reversed(list(zip(factors[1:], bonds[1:-1], bonds[2:], strict=True))):
        matrix = rest.reshape(len(target), -1, factor * right)
        rows = torch.linalg.svd(matrix, full_matrices=False)[2][:, :left]
        cores.append(rows.reshape(len(target), left, factor, right))
        rest = matrix @ rows.mT
    return [rest.reshape(len(target), bonds[0], factors[0], bonds[1]), *reversed(cores)]


def orthonormalise_outer(cores: Side) -> Side:
    """Return the same side with orthonormal rows in all but the first core."""
    first, *outer = cores
    if not outer:
        return cores
    outer = orthonormalise_outer(outer)
    carried, rows = _orthonormal_rows(outer[0])
    return [first @ carried.unsqueeze(1), rows, *outer[1:]]


def orthonormalise(cores: Side) -> tuple[Tensor, Side]:
    """Return a matrix (sites, k, k) and a side with orthonormal rows in every core, whose product is the side."""
    outer = orthonormalise_outer(cores)
    carried, rows = _orthonormal_rows(outer[0])
    return carried, [rows, *outer[1:]]


def weighted_orthonormalise(cores: Side, weight: Tensor) -> Side:
    """Return a side whose rows are orthonormal in the inner product of ``weight`` and span what they spanned.

    Args:
        cores: The side; the rows of all but the first core are orthonormal. Rows that depend on others, or are zero,
            are replaced.
        weight: Positive definite, (sites, width, width).
    """
    first, *outer = cores
    root = cholesky(_reduce(weight, first.shape[2], outer))
    columns = torch.linalg.qr(root.mT @ first.flatten(2).mT)[0]
    rows = torch.linalg.solve_triangular(root.mT, columns, upper=True).mT
    return [rows.reshape(first.shape), *outer]


def fit_side(cores: Side, target: Tensor, weight: Tensor) -> Side:
    """Bring a side closer to a matrix by one sweep of alternating least squares; the error does not grow.

    The squared error is tr((X - T) weight (X - T)') for the side X and the target T. Each core in turn, outwards and
    back, is set to its best value while the others stay.

    Args:
        cores: Where to begin; the rows of all but the first core are orthonormal.
        target: (sites, k, width).
        weight: Positive definite, (sites, width, width).

    Returns:
        The side; the rows of all but the first core are orthonormal.
    """
    cores, weighted = list(cores), target @ weight
    for index in range(len(cores) - 1):
        core = _best_core(cores, index, weighted, weight)
        cores[index] = torch.linalg.qr(core.flatten(1, 2))[0].reshape(core.shape)
    for index in range(len(cores) - 1, 0, -1):
        cores[index] = _orthonormal_rows(_best_core(cores, index, weighted, weight))[1]
    cores[0] = _best_core(cores, 0, weighted, weight)
    return cores


def _best_core(cores: Side, index: int, weighted: Tensor, weight: Tensor) -> Tensor:
    """Return the core at ``index`` that makes the error least, from the target times ``weight``, (sites, k, width)."""
    core, outer = cores[index], cores[index + 1 :]
    sites, left, factor, right = core.shape
    reduced = _reduce(weight, math.prod(c.shape[2] for c in cores[: index + 1]), outer)
    sums = _times_outer(weighted.reshape(-1, weighted.shape[1], reduced.shape[1] // right, _width(outer)), outer)
    if not index:  # the rows are independent of one another
        return torch.cholesky_solve(sums.reshape(sites, left, -1).mT, cholesky(reduced)).mT.reshape(core.shape)
    inner = _inner_columns(cores[:index])  # (sites, k, inner width, left)
    pairs = torch.einsum("skia,skjb->sijab", inner, inner)
    parts = reduced.reshape(sites, inner.shape[2], factor * right, inner.shape[2], factor * right)
    normal = torch.einsum("sijab,sixjy->saxby", pairs, parts).reshape(sites, left * factor * right, -1)
    right_side = torch.einsum("skia,skix->sax", inner, sums.reshape(*inner.shape[:3], factor * right))
    return torch.cholesky_solve(right_side.reshape(sites, -1, 1), cholesky(normal)).reshape(core.shape)


def _reduce(weight: Tensor, inner_width: int, outer: Side) -> Tensor:
    """Return ``weight`` on the widths inside ``outer`` and its first bond: (sites, inner * bond, inner * bond)."""
    columns = _times_outer(weight.reshape(len(weight), weight.shape[1], inner_width, -1), outer)
    columns = columns.reshape(len(weight), weight.shape[1], -1).mT
    return _times_outer(columns.reshape(len(weight), columns.shape[1], inner_width, -1), outer).flatten(2)


def _times_outer(values: Tensor, outer: Side) -> Tensor:
    """Multiply values (sites, rows, inner, outer width) by the outer cores: (sites, rows, inner, bond)."""
    return values @ contract_cores(outer).mT.unsqueeze(1) if outer else values


def _width(cores: Side) -> int:
    return math.prod(core.shape[2] for core in cores)


def _inner_columns(cores: Side) -> Tensor:
    """Return the product of the inner cores, (sites, k, inner width, last bond)."""
    product = cores[0]
    for core in cores[1:]:
        product = torch.einsum("skia,sanb->skinb", product, core).flatten(2, 3)
    return product


def _orthonormal_rows(core: Tensor) -> tuple[Tensor, Tensor]:
    """Split a core into a matrix (sites, left, left) and a core with orthonormal rows."""
    q, r = torch.linalg.qr(core.flatten(2).mT)
    return r.mT, q.mT.reshape(core.shape)


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factors of positive semidefinite matrices (sites, n, n), raised until they exist."""
    scale = matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(matrix.dtype).tiny)
    raised = torch.finfo(matrix.dtype).eps
    while True:
        diagonal = (raised * scale).unsqueeze(-1).expand(matrix.shape[:-1])
        root, info = torch.linalg.cholesky_ex(matrix + torch.diag_embed(diagonal))
        if not info.any():
            return root
        raised *= 100
