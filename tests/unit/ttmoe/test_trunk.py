"""The trunk and the layers above it equal the whole forward bit for bit, on every architecture."""

from __future__ import annotations

import weakref

import pytest
import torch
from architectures import LAYERS, NAMES, OTHERS, REPEATED, batch, stir, tiny_bank, tiny_model, with_each
from reference_features import router_features
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ttmoe.adapter import AdapterSpec
from ttmoe.errors import InputError
from ttmoe.features import POOLINGS, FeatureSpec, pool_state, pool_states
from ttmoe.trunk import Trunk, keeps_hidden_states, use_hidden_states

NAMED = ["one", "two", "one", "two", "two", "one"]


def bank_above(name, depth, **settings):
    """Two experts that act from ``depth`` up."""
    bank = tiny_bank(name, **settings)
    specs = (AdapterSpec(rank=3, alpha=1.0, targets=("q", "v", "down"), first_layer=depth),
             AdapterSpec(method="lora", rank=4, alpha=2.0, targets=("k", "o"), first_layer=LAYERS - 1))  # fmt: skip
    for i, spec in enumerate(specs):
        stir(bank.add(("one", "two")[i], spec, i + 2, torch.Generator()), seed=i)
    return bank


def state_of(model):
    """The state that a pass must not change."""
    return [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
            for m in model.modules()]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_both_halves_equal_the_bare_base_at_every_depth(name):
    model, inputs = tiny_model(name), batch()
    whole = model(**inputs, output_hidden_states=True)
    before = state_of(model)
    for depth in range(LAYERS + 1):
        trunk = Trunk(model, depth)
        states = trunk.states(inputs)
        assert torch.equal(Trunk(model, depth).run_above(states, inputs), whole.last_hidden_state)
        seen = trunk.hidden_states(inputs)
        assert len(seen) == depth + 1
        assert torch.equal(seen[-1], states)
        for i, kept in enumerate(seen[:LAYERS]):
            assert torch.equal(kept, whole.hidden_states[i])
        assert torch.equal(trunk.run_above(states, inputs), whole.last_hidden_state)
        other = trunk.run_above(states + torch.randn(states.shape), inputs)  # the result depends on the states
        assert not torch.allclose(other, whole.last_hidden_state, atol=1e-2)
        assert state_of(model) == before


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_hidden_states_above_the_trunk_equal_the_whole_passs(name):
    model, inputs = tiny_model(name), batch()
    whole = model(**inputs, output_hidden_states=True).hidden_states
    before = state_of(model)
    for depth in range(LAYERS + 1):
        trunk = Trunk(model, depth)
        above = trunk.hidden_states_above(trunk.states(inputs), inputs)
        assert len(above) == LAYERS + 1 - depth
        assert all(map(torch.equal, above, whole[depth:]))
        assert state_of(model) == before


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
@torch.no_grad()
def test_d18_states_pooled_as_the_layers_run_are_those_of_the_whole_pass(name):
    """Bit for bit; the last one has the final norm where the architecture has one."""
    model, inputs = tiny_model(name), batch()
    whole, mask = model(**inputs, output_hidden_states=True).hidden_states, inputs["attention_mask"]
    before = state_of(model)
    seen = use_hidden_states(model, inputs, lambda index, states: (index, states.clone()))
    assert [index for index, _ in seen] == list(range(LAYERS + 1))
    assert all(torch.equal(states, expected) for (_, states), expected in zip(seen, whole, strict=True))
    pooled = torch.stack(use_hidden_states(model, inputs, lambda index, states: pool_state(states, mask)), dim=1)
    assert torch.equal(pooled, pool_states(whole, mask))
    sums = torch.stack([torch.stack([(mask.unsqueeze(2) * layer).sum(1), layer[range(6), mask.sum(1) - 1]], dim=1)
                        for layer in whole], dim=1)  # fmt: skip
    assert pooled.shape == (6, LAYERS + 1, len(POOLINGS), whole[0].shape[2])
    torch.testing.assert_close(pooled, F.normalize(sums, dim=-1), rtol=1e-5, atol=1e-6)
    assert state_of(model) == before


PASSES = {
    "whole": lambda model, inputs: use_hidden_states(model, inputs, lambda index, states: None),
    "trunk": lambda model, inputs: Trunk(model, 8).hidden_states(inputs, lambda index, states: None),
    "states": lambda model, inputs: Trunk(model, 8).states(inputs),
    "above": lambda model, inputs: Trunk(model, 0).hidden_states_above(
        torch.randn(6, 7, 32), inputs, lambda index, states: None
    ),
}


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.parametrize("way", PASSES)
@torch.no_grad()
def test_d18_one_hidden_state_is_in_memory_at_a_time(name, way):
    """Besides the embeddings, which the model's forward keeps. DeBERTa's keeps all of them."""
    count = "n_layer" if name == "gpt2" else "num_hidden_layers"
    model, inputs, seen, alive = tiny_model(name, **{count: 8}), batch(), [], []
    model.config.use_cache = False  # as ``load_body`` sets it

    def watch(module, args, kwargs):
        seen.append(weakref.ref(args[0] if args else kwargs["hidden_states"]))
        alive.append(sum(states() is not None for states in seen[1:]))

    for layer in Trunk(model, 0).layers:
        layer.register_forward_pre_hook(watch, with_kwargs=True)
    PASSES[way](model, inputs)
    assert len(alive) == 8
    assert max(alive) == (7 if keeps_hidden_states(model) else 1)


@pytest.mark.parametrize(("training", "name"), with_each(True, False))
def test_experts_above_the_trunk_give_the_same_scores_and_gradients(training, name):
    inputs = batch()
    for depth in range(LAYERS):
        bank = bank_above(name, depth).train(training)
        runs = []
        for kept in (None, bank.trunk(depth).states(inputs)):
            bank.zero_grad()
            scores = bank(inputs, NAMED, states=kept, depth=depth)
            F.cross_entropy(scores, torch.ones(len(scores), dtype=torch.long)).backward()
            runs.append((scores.detach(), {key: p.grad for key, p in bank.experts.named_parameters()}))
        assert kept.grad_fn is None
        assert torch.equal(runs[0][0], runs[1][0])
        assert all(torch.equal(gradient, runs[1][1][key]) for key, gradient in runs[0][1].items())
        assert all(gradient.abs().max() > 0 for gradient in runs[0][1].values())
        assert all(p.grad is None for p in bank.model.parameters())
        assert bank.training is training


@pytest.mark.parametrize("name", REPEATED)
def test_checkpointing_above_the_trunk(name):
    bank, inputs = bank_above(name, 1).train(), batch()
    bank(inputs, NAMED).logsumexp(-1).sum().backward()
    plain = {key: p.grad for key, p in bank.experts.named_parameters()}
    bank.zero_grad()
    bank.model.activation_checkpointing_enable({"use_reentrant": False})
    states = bank.trunk(1).states(inputs)
    bank(inputs, NAMED, states=states, depth=1).logsumexp(-1).sum().backward()
    for key, parameter in bank.experts.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", REPEATED)
@torch.no_grad()
def test_states_cached_row_by_row_can_be_used_in_other_batches(name):
    bank, long, depth = bank_above(name, 2), batch(tokens=9, rows=6), 2
    kept = []
    for i, row in enumerate(long["attention_mask"]):
        ends = int(row.sum()) + i % 2  # some rows are cached with padding
        alone = {key: value[i : i + 1, :ends] for key, value in long.items()}
        kept.append(bank.trunk(depth).states(alone)[0, : int(row.sum())])
    picked = [4, 0, 3, 5]
    states = pad_sequence([kept[i] for i in picked], batch_first=True)
    inputs = {key: value[picked, : states.shape[1]] for key, value in long.items()}
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(states[mask], bank.trunk(depth).states(inputs)[mask], rtol=1e-5, atol=1e-5)
    names = ["one", "two", "two", "one"]
    torch.testing.assert_close(bank.features(inputs, names, states=states, depth=depth),
                               bank.features(inputs, names), rtol=1e-5, atol=1e-5)  # fmt: skip


@torch.no_grad()
def test_deberta_with_a_convolution_after_its_first_layer():
    model, inputs = tiny_model("deberta-v2", conv_kernel_size=3), batch()
    whole = model(**inputs, output_hidden_states=True)
    for depth in range(LAYERS + 1):
        trunk = Trunk(model, depth)
        assert torch.equal(trunk.run_above(trunk.states(inputs), inputs), whole.last_hidden_state)
        assert all(map(torch.equal, trunk.hidden_states(inputs), whole.hidden_states[: depth + 1]))


def test_states_have_no_dropout_and_the_layers_above_have():
    bank = bank_above("bert", 1, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    inputs, trunk = batch(), bank.trunk(1)
    assert torch.equal(trunk.states(inputs), trunk.states(inputs))
    assert torch.equal(trunk.states(inputs), bank.eval().trunk(1).states(inputs))
    states = trunk.states(inputs)
    assert not torch.equal(*(bank.train()(inputs, "one", states=states, depth=1) for _ in range(2)))


def fail(module, args):
    raise ZeroDivisionError


@torch.no_grad()
def test_an_exception_leaves_the_model_as_it_was():
    bank, inputs = bank_above("llama", 2).train(), batch()
    answer, before, states = bank(inputs, NAMED), state_of(bank.model), bank.trunk(2).states(inputs)
    hooks = [bank.model.layers[i].mlp.register_forward_pre_hook(fail) for i in (0, 2)]
    with pytest.raises(ZeroDivisionError):
        bank.trunk(2).states(inputs)
    with pytest.raises(ZeroDivisionError):  # in the pass that counts a layer's outputs
        bank(inputs, NAMED, states=states, depth=2)
    hooks[0].remove()
    with pytest.raises(ZeroDivisionError):
        bank(inputs, NAMED, states=states, depth=2)
    hooks[1].remove()
    assert state_of(bank.model) == before
    assert torch.equal(bank(inputs, NAMED), answer)


@torch.no_grad()
def test_a_replaced_forward_is_restored():
    bank, inputs = bank_above("llama", 2), batch()
    layer = bank.model.layers[0]
    layer.forward = kept = layer.forward  # as accelerate replaces it
    bank(inputs, NAMED, states=bank.trunk(2).states(inputs), depth=2)
    assert vars(layer)["forward"] is kept


@torch.no_grad()
def test_the_layers_below_are_not_computed():
    bank, inputs = bank_above("llama", 2), batch()
    states, calls = bank.trunk(2).states(inputs), []
    for i, layer in enumerate(bank.model.layers):
        layer.mlp.register_forward_hook(lambda *_, i=i: calls.append(i))
    bank(inputs, "one", states=states, depth=2)  # the first pass runs one layer to count its outputs
    bank(inputs, "one", states=states, depth=2)
    assert calls == [0, 2, 2]
    bank.trunk(1).states(inputs)
    assert calls == [0, 2, 2, 0]


@torch.no_grad()
def test_the_router_reads_the_trunks_own_pass():
    bank, inputs, spec = bank_above("llama", 2), batch(), FeatureSpec((0, 2))
    seen = bank.trunk(2).hidden_states(inputs)
    features = pool_states([seen[i] for i in spec.layers], inputs["attention_mask"], spec.poolings)
    assert torch.equal(features.flatten(1), router_features(bank.model, inputs, spec))
    assert torch.equal(bank(inputs, NAMED, states=seen[-1], depth=2), bank(inputs, NAMED))


def test_invalid_trunks_and_states_are_refused():
    bank, inputs = bank_above("llama", 1), batch()
    with pytest.raises(InputError, match="a trunk of 4 layers does not fit a base of 3"):
        bank.trunk(4)
    with pytest.raises(InputError, match="a trunk of -1 layers"):
        Trunk(bank.model, -1)
    states = bank.trunk(2).states(inputs)
    with pytest.raises(InputError, match="expert 'one' adapts layer 1, which is below the trunk's depth 2"):
        bank(inputs, NAMED, states=states, depth=2)
    with pytest.raises(InputError, match="no expert named 'three'"):
        bank(inputs, "three", states=states, depth=2)
    with pytest.raises(InputError, match=r"states of shape \(6, 6\) \(rows, tokens\) for inputs of shape \(6, 7\)"):
        bank(inputs, "two", states=states[:, :6], depth=2)
    bank.merge("one")
    with pytest.raises(InputError, match="'one' is merged below layer 2"):
        bank.trunk(2)
    assert torch.equal(bank(inputs, "one", states=bank.trunk(1).states(inputs), depth=1), bank(inputs, "one"))
