import math

import pytest
import torch

from ttmoe.errors import InputError
from ttmoe.methods import LowRank, TensorTrain
from ttmoe.shapes import TTShape


def tensor_train(shape: str, init: str = "zero") -> TensorTrain:
    return TensorTrain(TTShape.parse(shape), init)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The text of each method, as expert files hold it, and a function that makes it.
METHODS = {
    "tt:4x3|2x5@3": lambda: tensor_train("4x3|2x5@3"),
    "tt:4x3x2|2x3x5@5/paper": lambda: tensor_train("4x3x2|2x3x5@5", "paper"),
    "tt:12|10@4": lambda: tensor_train("12|10@4"),
    "tt:2x2|2x2@50": lambda: tensor_train("2x2|2x2@50"),
    "tt:16x8x4x4|4x4x8x16@5": lambda: tensor_train("16x8x4x4|4x4x8x16@5"),
    "lora:12x10@3": lambda: LowRank(12, 10, 3),
    "lora:24x30@16": lambda: LowRank(24, 30, 16),
}


@pytest.mark.parametrize("text", METHODS)
def test_methods_are_values_that_differ_where_their_text_does(text):
    method = METHODS[text]()
    assert str(method) == text
    assert METHODS[text]() == method
    assert {method: 1}[METHODS[text]()] == 1
    assert [other for other in METHODS if METHODS[other]() == method] == [text]
    assert method.name == text.split(":")[0]


@pytest.mark.parametrize("text", METHODS)
def test_one_interface(text):
    method = METHODS[text]()
    cores = method.initial_cores(3, seeded())
    assert [tuple(core.shape) for core in cores] == [(3, *shape) for shape in method.core_shapes]
    assert {core.dtype for core in cores} == {torch.float32}
    assert method.parameters == sum(core[0].numel() for core in cores)
    a, b = method.factors(cores)
    assert a.shape == (3, method.rank, method.in_features)
    assert b.shape == (3, method.out_features, method.rank)
    assert torch.linalg.matrix_rank(a).tolist() == [method.rank] * 3


@pytest.mark.parametrize("text", METHODS)
def test_the_initial_update_is_exactly_zero_unless_it_is_the_papers(text):
    method = METHODS[text]()
    a, b = method.factors(method.initial_cores(3, seeded()))
    assert (torch.count_nonzero(b @ a) == 0) == (not text.endswith("/paper"))


@pytest.mark.parametrize("text", METHODS)
def test_every_core_is_trained_after_one_step(text):
    method = METHODS[text]()
    cores = [core.requires_grad_() for core in method.initial_cores(2, seeded())]
    target = torch.randn(2, method.out_features, method.in_features, generator=seeded(1))
    for _ in range(2):
        a, b = method.factors(cores)
        gradients = torch.autograd.grad((b @ a * target).sum(), cores)
        with torch.no_grad():
            for core, gradient in zip(cores, gradients, strict=True):
                core -= 0.1 * gradient
    assert all(torch.count_nonzero(gradient) for gradient in gradients)


@pytest.mark.parametrize("text", METHODS)
def test_the_generator_decides_the_cores(text):
    method = METHODS[text]()
    first, again, other = (method.initial_cores(2, seeded(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("text", METHODS)
def test_cores_can_be_planned_on_the_meta_device(text):
    with torch.device("meta"):
        assert all(core.is_meta for core in METHODS[text]().initial_cores(2, None))


def test_scaling():
    assert tensor_train("4x3|2x5@3").scaling(16) == 16.0
    assert LowRank(12, 10, 8).scaling(16) == 2.0


def test_rank_is_the_middle_bond():
    assert tensor_train("2x2|2x2@50").rank == 4
    assert tensor_train("16x8x4x4|4x4x8x16@5").rank == 5
    assert LowRank(12, 10, 16).rank == 16


def test_low_rank_starts_as_peft_does():
    method = LowRank(576, 192, 16)
    a, b = method.initial_cores(4, seeded())
    reference = torch.nn.init.kaiming_uniform_(torch.empty(16, 576), a=math.sqrt(5))
    bound = 1 / math.sqrt(576)
    assert reference.abs().max() <= bound
    assert 0.99 * bound < a.abs().max() <= bound
    assert a.std().item() == pytest.approx(reference.std().item(), rel=0.05)
    assert abs(a.mean().item()) < 0.01 * bound
    assert torch.count_nonzero(b) == 0


def test_parameters():
    assert LowRank(2048, 512, 16).parameters == 16 * (2048 + 512)
    assert TensorTrain(TTShape.parse("16x16x4x2|2x16x16@5")).parameters == 1160


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tensor_train("4x3|2x5@3", "none"), "'none' is not an initialisation"),
        (lambda: tensor_train("4x3|2x5@3", ""), "'' is not an initialisation"),
        (lambda: LowRank(12, 10, 0), "lora:12x10@0 has a width or rank below 1"),
        (lambda: LowRank(0, 10, 2), "lora:0x10@2 has a width or rank below 1"),
    ],
)
def test_invalid_methods_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
