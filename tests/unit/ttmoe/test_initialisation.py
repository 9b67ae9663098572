import itertools

import pytest
import torch

from ttmoe.initialisation import paper_cores, zero_start_cores
from ttmoe.shapes import TTShape
from ttmoe.tensor_train import cores_to_factors, cores_to_update

WIDTH = 256
SIDES = {1: (256,), 2: (16, 16), 3: (8, 4, 8), 4: (4, 4, 4, 4)}
SPLITS = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4)]  # 2 to 8 cores
CASES = list(itertools.product(SPLITS, [2, 7, 16]))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shape_of(sides, rank) -> TTShape:
    return TTShape(SIDES[sides[0]], SIDES[sides[1]], rank)


def first_gradient(shape, count, weight_gradient):
    """Gradient at the zero core where the loss's gradient at the update is ``weight_gradient``."""
    cores = zero_start_cores(shape.core_shapes, shape.split, count, seeded())
    cores[shape.split].requires_grad_()
    (cores_to_update(cores, shape.split) * weight_gradient).sum().backward()
    return cores[shape.split].grad


@pytest.mark.parametrize(("sides", "rank"), CASES)
def test_zero_start(sides, rank):
    shape = shape_of(sides, rank)
    cores = zero_start_cores(shape.core_shapes, shape.split, 2, seeded())
    assert [tuple(core.shape) for core in cores] == [(2, *core) for core in shape.core_shapes]
    a, b = cores_to_factors(cores, shape.split)
    assert torch.count_nonzero(b) == 0
    assert torch.count_nonzero(cores_to_update(cores, shape.split)) == 0
    # Rows of A are orthonormal for any number of cores and any rank.
    assert torch.allclose(a @ a.mT, torch.eye(shape.inner_rank).expand(2, -1, -1), atol=1e-5)


@pytest.mark.parametrize(("sides", "rank"), CASES)
def test_a_step_on_the_zero_core_moves_the_update_by_its_length(sides, rank):
    shape = shape_of(sides, rank)
    cores = zero_start_cores(shape.core_shapes, shape.split, 2, seeded())
    cores[shape.split] = torch.randn_like(cores[shape.split])
    moved = cores_to_update(cores, shape.split).flatten(1).norm(dim=1)
    assert torch.allclose(moved, cores[shape.split].flatten(1).norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize(("sides", "rank"), CASES)
def test_first_gradient_has_the_same_scale_for_any_number_of_cores_and_rank(sides, rank):
    shape = shape_of(sides, rank)
    noise = torch.randn(4, WIDTH, WIDTH, generator=seeded(1))
    gradient = first_gradient(shape, 4, noise)
    # Projections of unit normal noise: mean square 1, with the sampling error of that many values.
    assert gradient.square().mean().item() == pytest.approx(1, abs=6 * (2 / gradient.numel()) ** 0.5)


@pytest.mark.parametrize(("sides", "rank"), [((1, 1), 8), ((2, 2), 2), ((2, 2), 16), ((3, 3), 8), ((4, 4), 16)])
def test_first_gradient_scale_holds_for_a_single_token(sides, rank):
    count = 200
    x, y = torch.randn(2, count, WIDTH, generator=seeded(2))
    gradient = first_gradient(shape_of(sides, rank), count, y[:, :, None] * x[:, None, :])
    assert gradient.square().mean().item() == pytest.approx(1, rel=0.25)


def test_wider_bonds_than_a_shape_allows_still_start_at_zero():
    core_shapes = [(1, 2, 8), (8, 3, 8), (8, 5, 8), (8, 2, 1)]
    cores = zero_start_cores(core_shapes, 2, 3, seeded())
    assert [tuple(core.shape) for core in cores] == [(3, *core) for core in core_shapes]
    wide = cores[0].flatten(1, 2)
    assert torch.allclose(wide @ wide.mT, torch.eye(2).expand(3, -1, -1), atol=1e-5)
    a, _ = cores_to_factors(cores, 2)
    assert torch.linalg.matrix_norm(a, 2).max() <= 1 + 1e-5
    assert torch.count_nonzero(cores_to_update(cores, 2)) == 0


def test_orthogonal_cores_have_no_preferred_direction():
    first = zero_start_cores([(1, 8, 4), (4, 8, 1)], 1, 2000, seeded())[0]
    assert first.mean(dim=0).abs().max() < 5 / (2000 * 8) ** 0.5


def test_paper_cores_have_norm_one_in_every_layer():
    shape = TTShape.parse("16x8x4x4|4x4x8x16@5")
    cores = paper_cores(shape.core_shapes, 3, seeded())
    assert [tuple(core.shape) for core in cores] == [(3, *core) for core in shape.core_shapes]
    for core in cores:
        assert torch.allclose(core.flatten(1).norm(dim=1), torch.ones(3))
    assert torch.count_nonzero(cores_to_update(cores, shape.split)) > 0


def draws():
    shape = TTShape.parse("4x3x2|2x3x5@4")
    return {
        "paper": lambda g: paper_cores(shape.core_shapes, 2, g),
        "zero": lambda g: zero_start_cores(shape.core_shapes, shape.split, 2, g),
    }


@pytest.mark.parametrize("kind", draws())
def test_the_generator_decides_the_cores(kind):
    draw = draws()[kind]
    torch.manual_seed(1)
    first = draw(seeded(3))
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(seeded(3)), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, draw(seeded(4)), strict=True))
    assert not torch.equal(first[0][0], first[0][1])
    assert {core.dtype for core in first} == {torch.float32}
    assert all(core.is_contiguous() for core in first)


@pytest.mark.parametrize("kind", draws())
def test_cores_can_be_planned_on_the_meta_device(kind):
    with torch.device("meta"):
        assert all(core.is_meta for core in draws()[kind](None))
