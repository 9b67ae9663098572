"""Training through the bank changes the active experts alone, and factors follow the cores."""

from __future__ import annotations

import pytest
import torch
from architectures import NAMES, REPEATED, batch, stir, tiny_bank
from torch.nn import functional as F

from ttmoe.adapter import AdapterSpec
from ttmoe.errors import InputError

SPECS = {
    "one": AdapterSpec(rank=3, alpha=2.0, targets=("q", "v", "down")),
    "two": AdapterSpec(method="lora", rank=4, alpha=4.0, targets=("k", "up"), first_layer=1),
    "three": AdapterSpec(rank=2, alpha=2.0, targets=("q", "o")),
}


def two_banks(name="llama", **settings):
    banks = [tiny_bank(name, **settings) for _ in range(2)]
    for bank in banks:
        for i, (expert, spec) in enumerate(SPECS.items()):
            stir(bank.add(expert, spec, i + 2, torch.Generator()), seed=i)
    return banks


def loss_of(bank, inputs, names):
    """A loss that is the sum over rows, so that a row has the same weight in any batch."""
    scores = bank(inputs, names)
    return F.cross_entropy(scores, torch.ones(len(scores), dtype=torch.long), reduction="sum")


def gradients(bank):
    return {name: p.grad for name, p in bank.experts.named_parameters() if p.grad is not None}


def rows_of(inputs, where):
    return {key: value[where] for key, value in inputs.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_step_gives_gradients_to_the_active_experts_alone(name):
    together, apart = two_banks(name)
    inputs, names = batch(), ["one", "two", "one", "two", "two", "one"]
    loss_of(together, inputs, names).backward()
    for expert in ("one", "two"):
        where = [i for i, other in enumerate(names) if other == expert]
        loss_of(apart, rows_of(inputs, where), expert).backward()
    mixed, alone = gradients(together), gradients(apart)
    assert mixed.keys() == alone.keys()
    assert {key.split(".")[0] for key in mixed} == {"one", "two"}
    for key, gradient in mixed.items():
        torch.testing.assert_close(gradient, alone[key], rtol=1e-4, atol=1e-5)
        assert gradient.abs().max() > 1e-4, key
    assert all(p.grad is None for p in together.model.parameters())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_training_together_equals_training_alone_and_keeps_the_base(name):
    together, apart = two_banks(name)
    before = {key: value.clone() for key, value in together.model.state_dict().items()}
    third = {key: value.clone() for key, value in together.experts["three"].state_dict().items()}
    optimizer = torch.optim.AdamW(together.experts.parameters(), lr=1e-2)
    for step in range(20):
        optimizer.zero_grad()
        loss_of(together, batch(seed=step), ["one", "two"] * 3).backward()
        optimizer.step()
    for expert in ("one", "two"):
        optimizer = torch.optim.AdamW(apart.experts[expert].parameters(), lr=1e-2)
        for step in range(20):
            where = [0, 2, 4] if expert == "one" else [1, 3, 5]
            optimizer.zero_grad()
            loss_of(apart, rows_of(batch(seed=step), where), expert).backward()
            optimizer.step()
        for key, value in together.experts[expert].state_dict().items():
            torch.testing.assert_close(value, apart.experts[expert].state_dict()[key], rtol=1e-4, atol=1e-4)
    after = together.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.equal(value, together.experts["three"].state_dict()[key]) for key, value in third.items())


@pytest.mark.parametrize("name", REPEATED)
def test_gradient_checkpointing_gives_the_same_gradients(name):
    plain, checkpointed = two_banks(name)
    inputs, names = batch(), ["one", "two", "one", "three", "two", "one"]
    checkpointed.model.activation_checkpointing_enable({"use_reentrant": False})
    runs = []
    for bank in (plain, checkpointed):
        bank.train()
        # The second forward comes before the first backward: each must be recomputed with its own experts.
        losses = [loss_of(bank, inputs, names), loss_of(bank, batch(seed=1), "three")]
        for loss in losses:
            loss.backward()
        runs.append(gradients(bank))
        with torch.no_grad():
            bare = bank.eval().model(**inputs).last_hidden_state
        assert torch.equal(bare, tiny_bank(name).model(**inputs).last_hidden_state)
    assert runs[0].keys() == runs[1].keys()
    assert len({key.split(".")[0] for key in runs[0]}) == 3
    for key, gradient in runs[0].items():
        torch.testing.assert_close(runs[1][key], gradient, rtol=1e-5, atol=1e-6)


def test_reentrant_checkpointing_is_refused():
    bank = two_banks()[0].train()
    bank.model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="use_reentrant=False"):
        bank(batch(), "one")


def change(kind, expert):
    parameters = list(expert.adapter.parameters())
    if kind == "load_state_dict":
        expert.load_state_dict({key: value + 0.1 for key, value in expert.state_dict().items()})
    elif kind == "no_grad":
        with torch.no_grad():
            parameters[0].add_(0.1)
    elif kind == "data":
        parameters[0].data = parameters[0].data + 0.1
    else:
        for p in parameters:
            p.grad = torch.ones_like(p)
        {"foreach": torch.optim.AdamW(parameters, lr=0.1, foreach=True),
         "fused": torch.optim.AdamW(parameters, lr=0.1, fused=True),  # does not raise the version counter
         "single": torch.optim.SGD(parameters, lr=0.1)}[kind].step()  # fmt: skip


ALWAYS_SEEN = ("load_state_dict", "no_grad", "data")


@pytest.mark.parametrize(("kind", "frozen"), [(kind, frozen) for kind in ALWAYS_SEEN for frozen in (False, True)]
                         + [("foreach", False), ("fused", False), ("single", False)])  # fmt: skip
@torch.no_grad()
def test_factors_follow_the_cores(kind, frozen):
    bank = two_banks()[0]
    expert, inputs = bank.experts["one"].requires_grad_(not frozen), batch()
    before = bank.features(inputs, "one")
    assert (expert.adapter.factors() is expert.adapter.factors()) == frozen
    change(kind, expert)
    after = bank.features(inputs, "one")
    assert not torch.equal(before, after)
    expert.adapter._cache.clear()
    assert torch.equal(bank.features(inputs, "one"), after)


def test_factors_cached_in_inference_mode_can_be_used_in_training_of_other_experts():
    bank = two_banks()[0]
    bank.experts["one"].requires_grad_(False)
    with torch.inference_mode():
        bank(batch(), "one")
    loss_of(bank, batch(), ["one", "two"] * 3).backward()
    assert {key.split(".")[0] for key in gradients(bank)} == {"two"}
