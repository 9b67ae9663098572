"""Half-precision bases, autocast and moves: experts stay in fp32 and give the fp32 results up to rounding."""

from __future__ import annotations

import pytest
import torch
from architectures import REPEATED, batch, stir, tiny_bank, with_each

from ttmoe.adapter import AdapterSpec

SPEC = AdapterSpec(rank=3, alpha=1.0, targets=("q", "v", "down"))
LORA = AdapterSpec(method="lora", rank=2, alpha=2.0, targets=("k", "o"), first_layer=1)


def bank_of(name="llama"):
    bank = tiny_bank(name)
    stir(bank.add("a", SPEC, 2, torch.Generator()), seed=1)
    stir(bank.add("b", LORA, 3, torch.Generator()), seed=2)
    return bank


def types(module):
    return {p.dtype for p in module.parameters()}


@pytest.mark.parametrize(("dtype", "name"), with_each(torch.bfloat16, torch.float16))
def test_half_bases_with_fp32_experts(dtype, name):
    exact, half = bank_of(name), bank_of(name).to(dtype)
    names = ["a", "b"] * 3
    with torch.no_grad():
        expected, scores = exact(batch(), names), half(batch(), names)
        single = half(batch(), "a")
    assert scores.dtype == single.dtype == torch.float32
    assert types(half.model) == {dtype}
    assert types(half.experts) == {torch.float32}
    finite = expected.isfinite()
    assert torch.equal(finite, scores.isfinite())
    near = 0.15 if dtype == torch.bfloat16 else 0.02
    torch.testing.assert_close(scores[finite], expected[finite], rtol=near, atol=near * 3)
    half(batch(), names)[finite].sum().backward()
    gradients = {key: p.grad for key, p in half.experts.named_parameters()}
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())


def test_casting_the_bank_leaves_the_experts_bitwise_equal():
    bank = bank_of()
    before = {key: value.clone() for key, value in bank.experts.state_dict().items()}
    for cast in (bank.bfloat16, bank.half, bank.double, lambda: bank.to("cpu", torch.float32)):
        cast()
        after = bank.experts.state_dict()
        assert all(after[key].dtype == torch.float32 and torch.equal(after[key], before[key]) for key in before)
        assert bank(batch(), "a").isfinite().all()


def test_the_bank_moves_as_a_whole():
    bank = bank_of().to("meta")
    assert bank.device.type == "meta"
    assert {p.device.type for p in bank.parameters()} == {"meta"}
    assert bank.add("new", SPEC, 2).head.weight.device.type == "meta"


@pytest.mark.parametrize("name", REPEATED)
def test_autocast_does_not_affect_later_passes(name):
    bank, inputs = bank_of(name), batch()
    bank.requires_grad_(False)
    plain = bank_of(name)(inputs, ["a", "b"] * 3)
    with torch.autocast("cpu", torch.bfloat16):
        scores = bank(inputs, ["a", "b"] * 3)
        bank(inputs, "a")
    assert scores.dtype == torch.float32
    assert all(x.dtype == torch.float32 for e in bank.experts.values() for ab in e.adapter.factors() for x in ab)
    assert torch.equal(bank(inputs, ["a", "b"] * 3), plain)
    assert not torch.equal(scores, plain)
    torch.testing.assert_close(scores, plain, rtol=0.15, atol=0.45)


def test_experts_can_be_added_and_used_inside_inference_mode():
    with torch.inference_mode():
        bank = bank_of()
        bank.requires_grad_(False)
        inside = bank(batch(), ["a", "b"] * 3)
    with torch.no_grad():
        assert torch.equal(bank(batch(), ["a", "b"] * 3), inside)
