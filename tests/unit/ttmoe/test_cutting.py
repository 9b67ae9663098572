"""Moments as computed from single rows, on every architecture, and cuts of experts: scaling, head, sites, methods."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import KINDS, NAMES, batch, stir, tiny_bank
from torch.nn import functional as F

from ttmoe.adapter import AdapterSpec
from ttmoe.cutting import cut_expert, spec_of_rank, weighted_error
from ttmoe.errors import InputError
from ttmoe.moments import Moments, collecting_moments

ROLES = ("q", "k", "v", "o", "up", "down")
SPEC = AdapterSpec(targets=ROLES, rank=4, alpha=2.0, first_layer=1, dropout=0.5)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def bank_with(name: str, spec: AdapterSpec = SPEC, size: float = 0.3):
    bank = tiny_bank(name)
    stir(bank.add("x", spec, 3, torch.Generator()), size=size)
    return bank


def moments_of(bank, expert: str = "x", rows: int = 6, split: int = 3) -> Moments:
    with collecting_moments(bank, expert) as collector:
        for start in range(0, rows, split):
            inputs = {key: value[start : start + split] for key, value in batch(rows).items()}
            scores = bank(inputs, expert)
            collector.add(F.cross_entropy(scores, LABELS[start : start + split], reduction="sum"))
    return collector.moments


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_sums_over_the_tokens_that_count(name):
    bank = bank_with(name)
    bank.train()
    found = moments_of(bank)
    assert bank.training
    assert all(p.grad is None for p in bank.parameters())
    alone = moments_of(bank, split=1)  # one row a pass: no padding
    for side in ("inputs", "gradients"):
        for key, value in getattr(found, side).items():
            if name == "deberta-v2" and key[0] in "qk":  # they also map positions, once for all rows of a pass
                continue
            assert value.diagonal(dim1=-2, dim2=-1).min() >= 0
            assert value.norm() > 0
            torch.testing.assert_close(
                value, getattr(alone, side)[key], rtol=1e-3, atol=1e-4 * float(value.abs().max())
            )


def test_moments_are_those_of_inputs_and_gradients():
    """On a base whose maps are called once a pass: the outer products, taken apart by hooks of the test's own."""
    bank = bank_with("bert", AdapterSpec(targets=("v",), rank=2, first_layer=2))
    layer = bank.model.get_submodule(bank.expert("x").adapter.groups[0].sites[0].path)
    seen = {}
    hook = layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    inputs = batch()
    loss = F.cross_entropy(bank(inputs, "x"), LABELS, reduction="sum")
    hook.remove()
    gradient = torch.autograd.grad(loss, seen["y"])[0].flatten(0, 1)
    real = inputs["attention_mask"].flatten().bool()
    (c,), (g,) = moments_of(bank).inputs.values(), moments_of(bank).gradients.values()
    x = seen["x"].flatten(0, 1)[real]
    torch.testing.assert_close(c[0], x.T @ x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(g[0], gradient.T @ gradient, rtol=1e-4, atol=1e-6)


def test_a_frozen_expert_and_no_gradients_around():
    bank = bank_with("llama")
    trained = moments_of(bank)
    bank.expert("x").requires_grad_(False)
    with torch.no_grad():
        frozen = moments_of(bank)
    for key, value in trained.gradients.items():
        torch.testing.assert_close(frozen.gradients[key], value)


def test_an_error_leaves_no_hooks_and_the_mode_as_it_was():
    bank = bank_with("gpt2")
    bank.train()

    def fail() -> None:
        with collecting_moments(bank, "x"):
            bank(batch(), "x")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail()
    assert bank.training
    assert not any(module._forward_hooks for module in bank.modules())
    with pytest.raises(InputError, match="no expert"), collecting_moments(bank, "y"):
        pass


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_cut_at_the_parents_rank_answers_as_the_parent(name):
    bank = bank_with(name)
    moments = moments_of(bank)
    bank.attach("same", cut_expert(bank, "x", SPEC, moments))
    torch.testing.assert_close(bank(batch(), "same"), bank(batch(), "x"), rtol=1e-3, atol=1e-3)
    errors = weighted_error(bank.expert("x").adapter, bank.expert("same").adapter, moments)
    assert all((error < 1e-8).all() for error in errors.values())


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_weighted_cut_answers_closer_than_an_unweighted_one(name):
    bank = bank_with(name, size=0.15)
    moments = moments_of(bank)
    even = Moments(*({key: torch.zeros_like(v) for key, v in side.items()} for side in vars(moments).values()))
    scores, distances = bank(batch(), "x").log_softmax(1), {}
    for kind, weights in {"weighted": moments, "even": even}.items():
        bank.attach(kind, cut_expert(bank, "x", spec_of_rank(SPEC, 2), weights))
        distances[kind] = F.kl_div(bank(batch(), kind).log_softmax(1), scores, log_target=True, reduction="batchmean")
    assert distances["weighted"] < 0.7 * distances["even"]


@pytest.mark.parametrize("method", ["tt", "lora"])
@pytest.mark.parametrize("parent", ["tt", "lora"])
@torch.no_grad()
def test_from_any_method_to_any(parent, method):
    spec = AdapterSpec(method=parent, targets=("q", "v"), rank=4, alpha=3.0)
    bank = bank_with("phi3", spec)
    moments = moments_of(bank)
    whole = replace(spec, method=method, rank=40, shape="32|32" if method == "tt" else "auto", alpha=5.0)
    if method == "tt":
        whole = replace(whole, shape={"q": "32|32", "v": "32|16"})
    bank.attach("whole", cut_expert(bank, "x", whole, moments))
    torch.testing.assert_close(bank(batch(), "whole"), bank(batch(), "x"), rtol=1e-3, atol=1e-3)
    errors = []
    for rank in (3, 2, 1):
        child = cut_expert(bank, "x", replace(whole, rank=rank), moments)
        errors.append(
            float(sum(e.sum() for e in weighted_error(bank.expert("x").adapter, child.adapter, moments).values()))
        )
    assert 0 < errors[0] < errors[1] < errors[2]


def test_the_spec_of_a_cut_keeps_factors_and_scaling():
    text = AdapterSpec(rank=8, shape="48x8|8x48@16", alpha=8.0)
    assert spec_of_rank(text, 2) == replace(text, rank=2, shape="48x8|8x48")
    roles = replace(text, shape={"q": "48x8|8x48@16", "v": "auto"})
    assert spec_of_rank(roles, 4).shape == {"q": "48x8|8x48", "v": "auto"}
    assert spec_of_rank(AdapterSpec(method="lora", rank=8, alpha=16.0), 2).alpha == 4.0


@torch.no_grad()
def test_the_cut_is_an_expert_of_its_own():
    bank = bank_with("bert")
    before = {key: value.clone() for key, value in bank.expert("x").state_dict().items()}
    child = bank.attach("small", cut_expert(bank, "x", spec_of_rank(SPEC, 1), moments_of(bank)))
    stir(child, seed=5)
    assert all(torch.equal(value, before[key]) for key, value in bank.expert("x").state_dict().items())


def test_other_sites_and_values_that_are_not_finite_are_refused():
    bank = bank_with("bert")
    moments = moments_of(bank)
    with pytest.raises(InputError, match="other sites"):
        cut_expert(bank, "x", replace(SPEC, first_layer=0), moments)
    broken = replace(moments, inputs={key: value * torch.nan for key, value in moments.inputs.items()})
    with pytest.raises(InputError, match="not finite"):
        cut_expert(bank, "x", SPEC, broken)
