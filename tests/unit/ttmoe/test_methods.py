import math

import pytest
import torch

from ttmoe.errors import InputError
from ttmoe.methods import LowRank, TensorTrain, parse_method
from ttmoe.shapes import TTShape

METHODS = [
    "tt:4x3|2x5@3", "tt:4x3x2|2x3x5@5/paper", "tt:12|10@4", "tt:2x2|2x2@50", "tt:16x8x4x4|4x4x8x16@5",
    "lora:12x10@3", "lora:24x30@16",
]  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("text", METHODS)
def test_text_round_trip(text):
    method = parse_method(text)
    assert str(method) == text
    assert parse_method(str(method)) == method
    assert {method: 1}[parse_method(text)] == 1
    assert method.name == text.split(":")[0]


@pytest.mark.parametrize("text", METHODS)
def test_one_interface(text):
    method = parse_method(text)
    cores = method.initial(3, seeded())
    assert [tuple(core.shape) for core in cores] == [(3, *shape) for shape in method.core_shapes]
    assert {core.dtype for core in cores} == {torch.float32}
    assert method.parameters == sum(core[0].numel() for core in cores)
    a, b = method.factors(cores)
    assert a.shape == (3, method.rank, method.in_features)
    assert b.shape == (3, method.out_features, method.rank)
    assert torch.linalg.matrix_rank(a).tolist() == [method.rank] * 3


@pytest.mark.parametrize("text", METHODS)
def test_start_is_exactly_the_base_model_unless_it_is_the_papers(text):
    method = parse_method(text)
    a, b = method.factors(method.initial(3, seeded()))
    assert (torch.count_nonzero(b @ a) == 0) == (not text.endswith("/paper"))


@pytest.mark.parametrize("text", METHODS)
def test_every_core_is_trained_after_one_step(text):
    method = parse_method(text)
    cores = [core.requires_grad_() for core in method.initial(2, seeded())]
    target = torch.randn(2, method.out_features, method.in_features, generator=seeded(1))
    for _ in range(2):
        a, b = method.factors(cores)
        gradients = torch.autograd.grad((b @ a * target).sum(), cores)
        with torch.no_grad():
            for core, gradient in zip(cores, gradients, strict=True):
                core -= 0.1 * gradient
    assert all(torch.count_nonzero(gradient) for gradient in gradients)


@pytest.mark.parametrize("text", METHODS)
def test_the_generator_decides(text):
    method = parse_method(text)
    first, again, other = (method.initial(2, seeded(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("text", METHODS)
def test_cores_can_be_planned_on_the_meta_device(text):
    with torch.device("meta"):
        assert all(core.is_meta for core in parse_method(text).initial(2, None))


def test_scaling():
    assert parse_method("tt:4x3|2x5@3").scaling(16) == 16.0
    assert parse_method("lora:12x10@8").scaling(16) == 2.0


def test_rank_is_the_middle_bond():
    assert parse_method("tt:2x2|2x2@50").rank == 4
    assert parse_method("tt:16x8x4x4|4x4x8x16@5").rank == 5
    assert LowRank(12, 10, 16).rank == 16


def test_low_rank_starts_as_peft_does():
    method = LowRank(576, 192, 16)
    a, b = method.initial(4, seeded())
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
    "text",
    ["", "tt:", "tt", "lora:12@3", "tt:4x3|2x5@3/none", "tt:4x3|2x5@3/", "dora:4x4@2", "lora:12x10@0", "x"],
)
def test_text_that_is_no_method(text):
    with pytest.raises(InputError):
        parse_method(text)
