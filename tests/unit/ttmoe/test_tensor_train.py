import itertools
import math

import pytest
import torch

from tests.benchmarks.contraction import contract
from ttmoe.errors import InputError
from ttmoe.factorisation import factorisations
from ttmoe.shapes import TTShape
from ttmoe.tensor_train import cores_to_factors, cores_to_update, tt_svd

SHAPES = [
    "6|10@3", "6|2x5@4", "2x3|10@2", "4x3|2x5@1", "4x3|2x5@3", "3x4|5x2@16", "4x3x2|2x3x5@5",
    "2x2x2x2|3x2x2x2@7", "2x5x3|4@4", "4x4x2x2|2x2x4x4@5",
]  # fmt: skip
LEADS = [(), (2, 3)]


def random_cores(shape: TTShape, lead: tuple[int, ...] = (), dtype: torch.dtype = torch.float32):
    # Scaled so that the update's entries are near 1 and relative errors are meaningful.
    return [
        (torch.randn(*lead, *core, dtype=dtype) / math.sqrt(core[2])).requires_grad_() for core in shape.core_shapes
    ]


def close(got, wanted, tolerance=1e-5):
    return (got - wanted).norm() <= tolerance * wanted.norm()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def forms(x, cores, split):
    a, b = cores_to_factors(cores, split)
    return {
        "core by core": contract(x, cores, split),
        "two factors": (x @ a.mT) @ b.mT,
        "full update": x @ cores_to_update(cores, split).mT,
    }


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("text", SHAPES)
def test_three_forms_agree_in_outputs_and_gradients(text, lead):
    shape = TTShape.parse(text)
    cores = random_cores(shape, lead)
    x = torch.randn(*lead, 7, shape.in_features, requires_grad=True)
    weights = torch.randn(*lead, 7, shape.out_features)
    results = {}
    for name, y in forms(x, cores, shape.split).items():
        assert y.shape == weights.shape
        results[name] = (y, *torch.autograd.grad((y * weights).sum(), [x, *cores]))
    for name in ("two factors", "full update"):
        for got, wanted in zip(results[name], results["core by core"], strict=True):
            assert got.shape == wanted.shape
            assert close(got, wanted), name


@pytest.mark.parametrize("text", ["6|10@3", "2x3|2x5@4", "4x3x2|2x3x5@5", "2x2x3|3x2@2"])
def test_index_order_is_the_papers(text):
    shape = TTShape.parse(text)
    cores = [core.detach() for core in random_cores(shape, dtype=torch.float64)]
    found = cores_to_update(cores, shape.split)
    for places in itertools.product(*map(range, shape.inputs + shape.outputs)):
        value = torch.ones(1, 1, dtype=torch.float64)
        for core, place in zip(cores, places, strict=True):
            value = value @ core[:, place, :]
        i, stride = 0, 1
        for place, size in zip(places, shape.inputs, strict=False):  # the first input core varies fastest
            i, stride = i + place * stride, stride * size
        o = 0
        for place, size in zip(places[shape.split :], shape.outputs, strict=True):  # the first output core slowest
            o = o * size + place
        assert found[o, i].item() == pytest.approx(value.item(), rel=1e-12)


def test_factors_have_the_documented_shapes():
    shape = TTShape.parse("4x3|2x5@3")
    a, b = cores_to_factors(random_cores(shape, (2, 6)), shape.split)
    assert a.shape == (2, 6, 3, 12)
    assert b.shape == (2, 6, 10, 3)


def test_stacked_layers_equal_each_layer_alone():
    shape = TTShape.parse("4x3x2|2x3x5@5")
    cores = random_cores(shape, (4,))
    stacked = cores_to_update(cores, shape.split)
    for layer in range(4):
        assert close(cores_to_update([core[layer] for core in cores], shape.split), stacked[layer], 1e-6)


def test_contract_keeps_any_shape_of_input():
    shape = TTShape.parse("4x3|2x5@3")
    cores = random_cores(shape)
    full = cores_to_update(cores, shape.split)
    for size in [(12,), (5, 12), (2, 3, 12), (0, 12)]:
        x = torch.randn(size)
        assert contract(x, cores, shape.split).shape == (*size[:-1], 10)
        assert torch.allclose(contract(x, cores, shape.split), x @ full.T, atol=1e-5)


def test_gradients_are_right_by_finite_differences():
    shape = TTShape.parse("2x3|3x2@2")
    cores = random_cores(shape, (2,), torch.float64)
    assert torch.autograd.gradcheck(lambda *c: cores_to_factors(c, shape.split), cores)


@pytest.mark.parametrize("text", ["12|10@100", "4x3|2x5@100", "3x2x2|5x2@100", "2x2x3|2x5@100"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_svd_at_full_rank_gives_the_matrix_back(text, dtype):
    shape = TTShape.parse(text)
    matrix = torch.randn(10, 12).to(dtype)
    cores, error = tt_svd(matrix, shape)
    assert [tuple(core.shape) for core in cores] == list(shape.core_shapes)
    assert {core.dtype for core in cores} == {torch.promote_types(dtype, torch.float32)}
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    assert error < tolerance
    assert close(cores_to_update(cores, shape.split), matrix.to(cores[0].dtype), 2 * tolerance)


@pytest.mark.parametrize("text", SHAPES)
def test_svd_of_a_tensor_train_is_exact(text):
    shape = TTShape.parse(text)
    matrix = cores_to_update(random_cores(shape, dtype=torch.float64), shape.split).detach()
    cores, error = tt_svd(matrix, shape)
    assert error < 1e-12
    assert close(cores_to_update(cores, shape.split), matrix, 1e-12)


def unfoldings(matrix, shape):
    """Each bond's unfolding, by index arithmetic that is independent of the code under test."""
    sizes = shape.inputs + shape.outputs
    tensor = torch.empty(sizes, dtype=matrix.dtype)
    for places in itertools.product(*map(range, sizes)):
        i = sum(p * math.prod(shape.inputs[:k]) for k, p in enumerate(places[: shape.split]))
        o = sum(p * math.prod(shape.outputs[k + 1 :]) for k, p in enumerate(places[shape.split :]))
        tensor[places] = matrix[o, i]
    return [tensor.reshape(math.prod(sizes[:bond]), -1) for bond in range(1, len(sizes))]


@pytest.mark.parametrize("inputs", factorisations(12, max_factors=3))
@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_svd_error_bound(inputs, rank):
    shape = TTShape(inputs, (2, 5), rank)
    matrix = torch.randn(10, 12, dtype=torch.float64)
    cores, error = tt_svd(matrix, shape)
    norm = matrix.norm()
    assert error == pytest.approx(((cores_to_update(cores, shape.split) - matrix).norm() / norm).item())
    # The error of cutting each bond alone; a train's error is at least the largest of them (Oseledets 2011).
    cut = [
        torch.linalg.svdvals(unfolding)[bond:].norm() / norm
        for unfolding, bond in zip(unfoldings(matrix, shape), shape.ranks[1:-1], strict=True)
    ]
    best_possible = max(cut).item()
    assert best_possible - 1e-12 <= error <= math.sqrt(sum(c.item() ** 2 for c in cut)) + 1e-12
    assert error <= math.sqrt(len(cores) - 1) * best_possible + 1e-12


def test_svd_of_zero():
    cores, error = tt_svd(torch.zeros(10, 12), TTShape.parse("4x3|2x5@3"))
    assert error == 0.0
    assert torch.equal(cores_to_update(cores, 2), torch.zeros(10, 12))


def test_svd_refuses_invalid_matrices():
    shape = TTShape.parse("4x3|2x5@3")
    with pytest.raises(InputError, match="multiply to 12"):
        tt_svd(torch.zeros(12, 10), shape)
    with pytest.raises(InputError, match="matrix"):
        tt_svd(torch.zeros(2, 10, 12), shape)
    with pytest.raises(InputError, match="NaN"):
        tt_svd(torch.full((10, 12), math.nan), shape)
