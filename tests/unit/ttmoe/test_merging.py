"""Merging an expert into the base's weights, and restoring the base bit for bit."""

from __future__ import annotations

import pytest
import torch
from architectures import batch, stir, tiny_bank, with_each

from ttmoe.adapter import AdapterSpec
from ttmoe.errors import InputError

SPECS = {
    "a": AdapterSpec(rank=3, alpha=1.0, targets=("q", "k", "v", "o", "up", "down")),
    "b": AdapterSpec(method="lora", rank=2, alpha=2.0, targets=("v", "k"), first_layer=1),
}


def bank_of(name="llama"):
    bank = tiny_bank(name)
    for i, (expert, spec) in enumerate(SPECS.items()):
        stir(bank.add(expert, spec, 2, torch.Generator()), seed=i)
    return bank.requires_grad_(False)


def weights(bank):
    return {key: value.clone() for key, value in bank.model.state_dict().items()}


def same(bank, before):
    after = bank.model.state_dict()
    return all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(("expert", "name"), with_each(*SPECS))
def test_a_merged_expert_gives_the_same_scores_and_unmerge_restores_the_base(expert, name):
    bank, inputs = bank_of(name), batch()
    before, scores, bare = weights(bank), bank(inputs, expert), bank.model(**inputs).last_hidden_state
    bank.merge(expert)
    assert not same(bank, before)
    torch.testing.assert_close(bank(inputs, expert), scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bank(inputs, [expert] * 6), scores, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(bank.model(**inputs).last_hidden_state, bare, atol=1e-2)
    bank.unmerge()
    assert same(bank, before)
    assert torch.equal(bank.model(**inputs).last_hidden_state, bare)
    assert torch.equal(bank(inputs, expert), scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_are_rounded_once_and_restored(dtype):
    bank = bank_of().to(dtype)
    before, features = weights(bank), bank.features(batch(), "a")
    bank.merge("a")
    torch.testing.assert_close(bank.features(batch(), "a"), features, rtol=0.1, atol=0.1)
    bank.unmerge()
    assert same(bank, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_merged(bad):
    bank = bank_of().half()
    with torch.no_grad():
        list(bank.experts["b"].adapter.parameters())[-1][-1, -1, -1] = bad  # the last layer of the last group
    before = weights(bank)
    with pytest.raises(InputError, match=r"not finite in layers\.2\.self_attn\.k_proj"):
        bank.merge("b")
    assert same(bank, before)
    bank.merge("a")
    bank.unmerge()
    assert same(bank, before)


def test_while_one_expert_is_merged_no_other_can_be_used():
    bank = bank_of()
    bank.merge("a")
    for call in (lambda: bank(batch(), "b"), lambda: bank(batch(), ["a", "b"] * 3), lambda: bank.merge("b"),
                 lambda: bank.merge("a"), lambda: bank.remove("a")):  # fmt: skip
        with pytest.raises(InputError, match="'a' is merged") as caught:
            call()
        assert caught.value.fix == "unmerge first"
    bank.remove("b")
    bank.unmerge()
    with pytest.raises(InputError, match="no expert is merged"):
        bank.unmerge()
    with pytest.raises(InputError, match="no expert named 'b'"):
        bank.merge("b")
