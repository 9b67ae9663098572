"""A mixed batch gives the results of each expert alone, on every architecture, and experts do not affect each other."""

from __future__ import annotations

import pytest
import torch
from architectures import NAMES, REPEATED, batch, stir, tiny_bank

from ttmoe.adapter import AdapterSpec
from ttmoe.errors import InputError

SPECS = {
    "wide": AdapterSpec(targets=("q", "k", "v", "o", "up", "down"), rank=3, alpha=1.0),
    "plain": AdapterSpec(method="lora", targets=("k", "q"), rank=5, alpha=2.0, first_layer=1),
    "low": AdapterSpec(targets=("down", "v"), rank=2, alpha=1.0, last_layer=1),
    "top": AdapterSpec(method="lora", targets=("v", "o"), rank=2, alpha=1.0, first_layer=2),
}
ROWS = ["wide", "plain", "wide", "low", "top", "low"]


def full_bank(name, **settings):
    bank = tiny_bank(name, **settings)
    for i, (expert, spec) in enumerate(SPECS.items()):
        stir(bank.add(expert, spec, classes=i + 1, generator=torch.Generator()), seed=i)
    return bank


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_mixed_batch_equals_each_expert_alone(name):
    bank, inputs = full_bank(name), batch()
    alone = {expert: (bank(inputs, expert), bank.features(inputs, expert)) for expert in SPECS}
    for rows in (ROWS, ["plain", "low", "top", "wide", "wide", "wide"], ["low", "top"] * 3, ["top"] * 6):
        mixed, features = bank(inputs, rows), bank.features(inputs, rows)
        for i, expert in enumerate(rows):
            scores, own = alone[expert][0][i], alone[expert][1][i]
            torch.testing.assert_close(mixed[i, : len(scores)], scores, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(features[i], own, rtol=1e-5, atol=1e-5)
            assert mixed[i, len(scores) :].eq(-torch.inf).all()
    different = torch.stack([features[0] for _, features in alone.values()])
    assert torch.pdist(different).min() > 1e-2  # else the comparisons above prove little


@pytest.mark.parametrize("name", REPEATED)
@torch.no_grad()
def test_one_row_for_each_expert_in_any_order(name):
    bank, inputs = full_bank(name), batch(rows=4)
    rows = list(SPECS)
    mixed = bank.features(inputs, rows)
    for i, expert in enumerate(rows):
        torch.testing.assert_close(mixed[i], bank.features(inputs, expert)[i], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        bank.features({k: v.flip(0) for k, v in inputs.items()}, rows[::-1]), mixed.flip(0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_without_an_active_expert_the_outputs_are_bitwise_the_bases(name):
    bank, inputs = tiny_bank(name), batch()
    before = bank.model(**inputs).last_hidden_state
    for i, (expert, spec) in enumerate(SPECS.items()):
        stir(bank.add(expert, spec, 2, torch.Generator()), seed=i)
    assert torch.equal(bank.model(**inputs).last_hidden_state, before)
    bank(inputs, ROWS)
    assert torch.equal(bank.model(**inputs).last_hidden_state, before)
    with pytest.raises(RuntimeError), bank.active("wide"):
        raise RuntimeError
    assert torch.equal(bank.model(**inputs).last_hidden_state, before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "deberta-v2"])
@torch.no_grad()
def test_adding_and_removing_experts_leaves_the_others_bitwise_equal(name):
    bank, inputs = tiny_bank(name), batch()
    stir(bank.add("plain", SPECS["plain"], 3, torch.Generator()))
    before = bank(inputs, "plain")
    for other in ("wide", "low", "top"):
        stir(bank.add(other, SPECS[other], 2, torch.Generator()), seed=9)
        assert torch.equal(bank(inputs, "plain"), before)
    mixed = bank(inputs, ["plain", "low"] * 3)
    for other in ("wide", "top"):
        bank.remove(other)
        assert torch.equal(bank(inputs, "plain"), before)
    assert torch.equal(bank(inputs, ["plain", "low"] * 3), mixed)
    assert list(bank.experts) == ["plain", "low"]


@torch.no_grad()
def test_nested_contexts():
    bank, inputs = full_bank("llama"), batch()
    with bank.active("wide"):
        first = bank.model(**inputs).last_hidden_state
        with bank.active("plain"):
            second = bank.model(**inputs).last_hidden_state
        assert torch.equal(bank.model(**inputs).last_hidden_state, first)
    assert not torch.equal(first, second)


def test_names_that_torch_reserves():
    bank = tiny_bank()
    for name in ("train", "v1.0", "keys", "forward", "two words"):
        bank.add(name, SPECS["top"], 2, torch.Generator())
    assert bank(batch(), ["train", "v1.0", "keys", "forward", "two words", "train"]).shape == (6, 2)
    bank.remove("v1.0")
    assert list(bank.experts) == ["train", "keys", "forward", "two words"]


def test_a_zero_initialised_expert_equals_the_base():
    bank, inputs = tiny_bank(), batch()
    bank.add("x", AdapterSpec(rank=4), 2, torch.Generator().manual_seed(0))
    with torch.no_grad(), bank.active("x"):
        adapted = bank.model(**inputs).last_hidden_state
    torch.testing.assert_close(adapted, bank.model(**inputs).last_hidden_state, rtol=0, atol=0)
    assert bank(inputs, "x").eq(0).all()


def test_the_same_generator_gives_the_same_expert():
    bank = tiny_bank()
    states = [bank.add(str(i), SPECS["wide"], 2, torch.Generator().manual_seed(i // 2), random_head=True).state_dict()
              for i in range(3)]  # fmt: skip
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_errors_name_what_is_wrong_and_change_nothing():
    bank = full_bank("llama")
    layers = list(bank._layers.by_path)
    with pytest.raises(InputError, match="'wide' is already loaded"):
        bank.add("wide", SPECS["wide"], 2)
    with pytest.raises(InputError, match="no expert named 'nobody' is loaded") as caught:
        bank(batch(), "nobody")
    assert "wide, plain, low, top" in caught.value.fix
    with pytest.raises(InputError, match="no expert named 'nobody'"):
        bank(batch(), ["wide"] * 5 + ["nobody"])
    with pytest.raises(InputError, match="no expert named 'nobody'"):
        bank.remove("nobody")
    with pytest.raises(InputError, match="3 names for 6 rows"):
        bank(batch(), ["wide", "plain", "wide"])
    with pytest.raises(InputError, match="'rotor' matches no linear map"):
        bank.add("new", AdapterSpec(targets=("gate", "rotor")), 2)
    with pytest.raises(InputError, match=r"shape 4x4\|4x4 is for 16 to 16 features"):
        bank.add("new", AdapterSpec(targets=("gate",), shape="4x4|4x4"), 2)
    assert list(bank.experts) == list(SPECS)
    assert list(bank._layers.by_path) == layers


@torch.no_grad()
def test_a_base_may_be_converted_after_experts_were_added():
    bank = tiny_bank("llama")
    stir(bank.add("one", AdapterSpec(rank=2), 2, torch.Generator()))
    before = bank(batch(), "one")
    bank.model.to(torch.bfloat16)
    torch.testing.assert_close(bank(batch(), "one"), before, atol=0.2, rtol=0.1)
