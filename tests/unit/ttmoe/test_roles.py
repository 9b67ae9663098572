"""Each role is the map that the model uses for it, observed inside the attention and the feed-forward block."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, NAMES, batch, stir, tiny_bank
from transformers import AttentionInterface

from ttmoe.adapter import AdapterSpec
from ttmoe.targets import find_sites

SEEN: list[tuple[torch.Tensor, ...]] = []
ROTATED = ("llama", "mistral", "phi3", "gpt_neox", "modernbert")
NORMED = ("qwen3", "gemma3_text")


def spy(module, query, key, value, attention_mask, **kwargs):
    """Plain attention that records its inputs, each (batch, heads, tokens, size of a head)."""
    SEEN.append((query, key, value))
    repeat = query.shape[1] // key.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    )
    return out.transpose(1, 2), None


AttentionInterface.register("spy", spy)


@torch.no_grad()
def observe(bank, names):
    """The first layer's q, k, v as the attention receives them, the activation's input, and the model's output."""
    layer = find_layer(bank)
    found: dict[str, torch.Tensor] = {}
    act = [m for name, m in layer.named_modules() if name.rpartition(".")[2] in
           ("act", "act_fn", "activation_fn", "intermediate_act_fn")][-1]  # fmt: skip
    hooks = [act.register_forward_pre_hook(lambda m, x: note(found, "activated", x[0]))]
    if bank.model.config.model_type == "deberta-v2":
        for role, name in zip("qkv", ("query_proj", "key_proj", "value_proj"), strict=True):
            module = getattr(layer.attention.self, name)
            hooks.append(module.register_forward_hook(lambda m, x, y, role=role: note(found, role, y)))
    else:
        bank.model.config._attn_implementation = "spy"
    SEEN.clear()
    with bank.active(names) if names else torch.no_grad():
        found["output"] = bank.model(**batch()).last_hidden_state
    for hook in hooks:
        hook.remove()
    if SEEN:
        found |= {role: x.transpose(1, 2).flatten(-2) for role, x in zip("qkv", SEEN[0], strict=True)}
    return found


def note(found, key, value):
    """Keep the first value of a kind: of the first layer, and of tokens, not of DeBERTa's relative positions."""
    found.setdefault(key, value)


def find_layer(bank):
    prefix = find_sites(bank.model, ["o"])[0].path.split(".0.")[0]
    return bank.model.get_submodule(prefix)[0]


def changed(bank, role):
    """The observed tensors that an update of ``role`` in the first layer changes."""
    stir(bank.add(role, AdapterSpec(targets=(role,), rank=3, alpha=1.0, last_layer=0), 2))
    bare, adapted = observe(bank, None), observe(bank, role)
    return {key for key in bare if not torch.equal(bare[key], adapted[key])}


@pytest.mark.parametrize("name", NAMES)
def test_each_role_changes_its_own_part_and_what_follows(name):
    gated = ARCHITECTURES[name].gated
    for role in ("q", "k", "v"):
        assert changed(tiny_bank(name), role) == {role, "activated", "output"}
    assert changed(tiny_bank(name), "o") == {"activated", "output"}
    assert changed(tiny_bank(name), "down") == {"output"}
    assert changed(tiny_bank(name), "up") == ({"output"} if gated else {"activated", "output"})
    if gated:
        assert changed(tiny_bank(name), "gate") == {"activated", "output"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_the_attention_gets_exactly_the_update(name, role):
    bank = tiny_bank(name)
    spec = AdapterSpec(targets=(role,), rank=3, alpha=1.0, last_layer=0)
    expert = stir(bank.add("x", spec, 2))
    site = expert.adapter.groups[0].sites[0]
    inputs = []
    hook = bank.model.get_submodule(site.path).register_forward_pre_hook(lambda m, x: inputs.append(x[0]))
    difference = observe(bank, "x")[role] - observe(bank, None)[role]
    if (name, role) == ("opt", "q"):  # it scales the query before the attention
        difference = difference * 8**0.5
    hook.remove()
    (a, b) = (factor[0] for factor in expert.adapter.factors()[0])
    expected = inputs[0].reshape(*difference.shape[:2], -1) @ a.T @ b.T
    assert site.out_features == (32 if role == "q" else ARCHITECTURES[name].narrow) == b.shape[0]
    if role == "v" or name not in ROTATED + NORMED:
        torch.testing.assert_close(difference, expected, rtol=1e-5, atol=1e-5)
    elif name in ROTATED:  # a rotation keeps the length of each head
        heads = [x.unflatten(-1, (-1, 8)).norm(dim=-1) for x in (difference, expected)]
        torch.testing.assert_close(*heads, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_output_projection_reads_the_attention_and_down_the_inner_width(name):
    bank = tiny_bank(name)
    o, down = find_sites(bank.model, ["o", "down"], last=0)
    assert (o.in_features, o.out_features, down.in_features, down.out_features) == (32, 32, 48, 32)
    up = find_sites(bank.model, ["up"], last=0)[0]
    assert (up.in_features, up.out_features) == (32, 48)
