"""A compiled bank gives the same results, and switching between experts of one spec compiles no new graph."""

from __future__ import annotations

import pytest
import torch
from architectures import batch, stir, tiny_bank
from torch._dynamo.utils import counters

from ttmoe.adapter import AdapterSpec

ONE_LAYER = {"llama": {"num_hidden_layers": 1}, "bert": {"num_hidden_layers": 1}, "gpt2": {"n_layer": 1}}
SPEC = AdapterSpec(rank=3, alpha=1.0, targets=("q", "down"))
OTHER = AdapterSpec(method="lora", rank=4, alpha=2.0, targets=("k", "o"))


# Dynamo creates an instance of each autograd function, and torch warns about that.
pytestmark = pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _reset_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def small_bank(name, specs):
    bank = tiny_bank(name, **ONE_LAYER[name])
    for i, spec in enumerate(specs):
        stir(bank.add("abcd"[i], spec, i + 2, torch.Generator()), seed=i)
    return bank


@pytest.mark.parametrize(
    ("name", "backend"), [("llama", "eager"), pytest.param("bert", "aot_eager", marks=pytest.mark.thorough)]
)
def test_a_whole_compiled_bank(name, backend):
    bank, inputs = small_bank(name, (SPEC, OTHER)), batch()
    compiled = torch.compile(bank, backend=backend)
    for names in ("a", ["a", "b"] * 3, "b"):
        bank.zero_grad()
        expected, got = bank(inputs, names), compiled(inputs, names)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        expected.logsumexp(-1).sum().backward()
        plain = {key: p.grad.clone() for key, p in bank.experts.named_parameters() if p.grad is not None}
        bank.zero_grad()
        got.logsumexp(-1).sum().backward()
        for key, gradient in plain.items():
            torch.testing.assert_close(bank.get_parameter(f"experts.{key}").grad, gradient, rtol=1e-4, atol=1e-5)
        assert len(plain) > 2
    assert counters["stats"]["unique_graphs"] == 3  # one for each list of names
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("name", "backend"), [pytest.param("llama", "eager", marks=pytest.mark.thorough), ("gpt2", "aot_eager")]
)
@torch.no_grad()
def test_a_compiled_base_needs_two_graphs_for_all_experts_of_one_spec(name, backend):
    bank, plain, inputs = small_bank(name, [SPEC] * 4), small_bank(name, [SPEC] * 4), batch()
    bank.model.compile(backend=backend)
    for names in ("a", "d", ["a", "b"] * 3, ["d", "c", "a"] * 2, "b", list("abcdab"), ["c"] * 6):
        torch.testing.assert_close(bank(inputs, names), plain(inputs, names), rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2  # one expert, and several
    bank.remove("a")
    torch.testing.assert_close(bank(inputs, "c"), plain(inputs, "c"), rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2


@torch.no_grad()
def test_the_trunk_of_a_compiled_base():
    bank, plain, inputs = (*(small_bank("llama", [SPEC]) for _ in range(2)), batch())
    bank.model.compile(backend="eager")
    states = bank.trunk(0).states(inputs)
    assert torch.equal(states, plain.trunk(0).states(inputs))
    torch.testing.assert_close(bank(inputs, "a", states=states), plain(inputs, "a"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bank(inputs, "a"), plain(inputs, "a"), rtol=1e-5, atol=1e-5)
