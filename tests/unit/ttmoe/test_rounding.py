"""Weighted rounding: exact where a closed form is known, near the best that a descent finds, in the starting gauge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ttmoe.rounding import prepared_moments, round_update
from ttmoe.shapes import TTShape
from ttmoe.tensor_train import cores_to_factors, cores_to_update, tt_svd
from ttmoe.weighted_side import cholesky

SITES = 3
SHAPES = ["6x4|4x6", "4x3x2|2x3x4", "5|3x4", "6|7", "2x2x2x2x2|2x2x2", "3|2x2x2x2x3"]


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uneven(width: int, seed: int, power: float = 1.5) -> Tensor:
    """Moments whose eigenvalues fall from 1 in random directions."""
    directions = torch.linalg.qr(drawn(SITES, width, width, seed=seed))[0]
    return (directions * torch.arange(1, width + 1) ** -power) @ directions.mT


def shape_of(text: str, rank: int) -> TTShape:
    return TTShape.parse(f"{text}@{rank}")


def parent(text: str, rank: int = 8) -> tuple[Tensor, Tensor]:
    """A and B of random trains."""
    shape = shape_of(text, rank)
    return cores_to_factors([drawn(SITES, *core, seed=i) for i, core in enumerate(shape.core_shapes)], shape.split)


def moments(shape: TTShape, power: float = 1.5) -> tuple[Tensor, Tensor]:
    return uneven(shape.in_features, 1, power), uneven(shape.out_features, 2, power)


def update(cores: list[Tensor], shape: TTShape) -> Tensor:
    return cores_to_update([core.double() for core in cores], shape.split)


def error(change: Tensor, c: Tensor, g: Tensor) -> Tensor:
    return ((prepared_moments(g) @ change) * (change @ prepared_moments(c))).sum((-2, -1))


@pytest.mark.parametrize("text", SHAPES)
def test_the_parents_own_rank_gives_the_parent_and_a_higher_one_too(text):
    a, b = parent(text)
    for rank in (8, 11):
        shape = shape_of(text, rank)
        cores = round_update(a, b, *moments(shape), shape)
        assert [tuple(core.shape[1:]) for core in cores] == list(shape.core_shapes)
        torch.testing.assert_close(update(cores, shape), b @ a, rtol=1e-5, atol=1e-5)


def test_one_core_a_side_is_the_truncated_svd_and_weighted_that_of_the_whitened_update():
    shape = shape_of("6|7", 2)
    a, b = parent("6|7")
    even = torch.eye(6).expand(SITES, 6, 6), torch.eye(7).expand(SITES, 7, 7)
    u, s, vh = torch.linalg.svd(b @ a)
    plain = u[..., :2] @ torch.diag_embed(s[:, :2]) @ vh[:, :2]
    torch.testing.assert_close(update(round_update(a, b, *even, shape), shape), plain, rtol=1e-4, atol=1e-5)
    c, g = moments(shape)
    dropped = torch.linalg.svdvals(root(prepared_moments(g)) @ b @ a @ root(prepared_moments(c)))[:, 2:]
    found = error(b @ a - update(round_update(a, b, c, g, shape), shape), c, g)
    torch.testing.assert_close(found, dropped.square().sum(1), rtol=1e-5, atol=1e-8)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.sqrt().unsqueeze(-2)) @ vectors.mT


@pytest.mark.parametrize("text", SHAPES)
def test_less_error_than_plain_rounding_and_more_rank_is_less_error(text):
    a, b = parent(text)
    before = torch.zeros(SITES, dtype=torch.float64)
    for rank in (6, 4, 3, 2, 1):
        shape = shape_of(text, rank)
        c, g = moments(shape)
        found = error(b @ a - update(round_update(a, b, c, g, shape), shape), c, g)
        plain = torch.stack([update(tt_svd(each, shape)[0], shape) for each in b @ a])
        assert (found <= error(b @ a - plain, c, g) + 1e-9).all()
        assert (found >= before - 1e-9).all()
        before = found


@pytest.mark.parametrize("text", SHAPES)
def test_a_descent_from_the_result_finds_little_more(text):
    shape = shape_of(text, 3)
    a, b = parent(text)
    c, g = moments(shape)
    cores = [core.double().requires_grad_() for core in round_update(a, b, c, g, shape, sweeps=40)]
    whole = error(b @ a, c, g)
    first = error(b @ a - cores_to_update(cores, shape.split), c, g) / whole
    optimizer = torch.optim.LBFGS(cores, max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (error(b @ a - cores_to_update(cores, shape.split), c, g) / whole).sum()
        value.backward()
        return value

    optimizer.step(loss)
    last = error(b @ a - cores_to_update(cores, shape.split), c, g) / whole
    assert (first - last <= 1e-3 + 0.02 * last).all()


@pytest.mark.parametrize("text", SHAPES)
def test_the_first_output_core_is_the_orthogonality_centre(text):
    shape = shape_of(text, 3)
    cores = round_update(*parent(text), *moments(shape), shape)
    for index, core in enumerate(cores):
        if index != shape.split:
            matrix = core.flatten(1, 2) if index < shape.split else core.flatten(2).mT
            ones = torch.eye(matrix.shape[-1]).expand(SITES, -1, -1)
            torch.testing.assert_close(matrix.mT @ matrix, ones, rtol=0, atol=1e-5)
    centre = cores[shape.split].flatten(1).norm(dim=1).double()
    torch.testing.assert_close(centre, update(cores, shape).flatten(1).norm(dim=1), rtol=1e-5, atol=1e-6)


def test_a_matrix_that_rounding_made_indefinite_is_raised_until_it_has_a_root():
    ones = torch.ones(SITES, 4, 4, dtype=torch.float64)
    lower = cholesky(ones - 1e-9 * torch.eye(4))
    torch.testing.assert_close(lower @ lower.mT, ones, rtol=0, atol=1e-5)


def test_a_cut_of_the_cut_is_the_cut():
    shape = shape_of("4x3x2|2x3x4", 3)
    c, g = moments(shape)
    once = update(round_update(*parent("4x3x2|2x3x4"), c, g, shape), shape)
    cores = round_update(*parent("4x3x2|2x3x4"), c, g, shape)
    again = round_update(*cores_to_factors(cores, shape.split), c, g, shape)
    torch.testing.assert_close(update(again, shape), once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", SHAPES)
def test_moments_of_few_rows_dead_features_and_no_update(text):
    shape = shape_of(text, 2)
    width_in, width_out = shape.in_features, shape.out_features
    rows = drawn(SITES, 2, width_in) * 1e6
    rows[..., 0] = 0
    few, none = rows.mT @ rows, torch.zeros(SITES, width_out, width_out)
    a, b = parent(text)
    cores = round_update(a, b, few, none, shape)
    assert all(core.isfinite().all() for core in cores)
    if len(cores) == 2:  # two directions of inputs are all that counts, and the rank is two
        plain = update(round_update(a, b, torch.zeros_like(few), none, shape), shape)
        lost = [((b @ a - each) @ rows.mT).norm() for each in (update(cores, shape), plain)]
        assert lost[0] < 0.1 * lost[1]
    empty = round_update(a, torch.zeros_like(b), few, none, shape)
    assert update(empty, shape).count_nonzero() == 0
    assert all(core.isfinite().all() for core in empty)
    assert [core.norm() > 0 for core in empty] == [i != shape.split for i in range(len(empty))]
