from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, LAYERS, NAMES, tiny_model

from ttmoe.adapter import AdapterSpec, plan_groups
from ttmoe.architectures import layer_list
from ttmoe.bank import Bank
from ttmoe.errors import InputError
from ttmoe.targets import find_sites


def rows_of(site, width):
    return set(torch.arange(width)[site.rows].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_of_a_fused_map_are_disjoint_and_cover_it(name):
    model = tiny_model(name)
    for roles in (["q", "k", "v"], ["up", "gate"] if ARCHITECTURES[name].gated else ["up"]):
        by_path: dict[str, list[set[int]]] = {}
        for site in find_sites(model, roles, last=0):
            module = model.get_submodule(site.path)
            width = module.nf if hasattr(module, "nf") else module.out_features
            rows = rows_of(site, width)
            assert len(rows) == site.out_features
            by_path.setdefault(site.path, []).append(rows)
        for path, parts in by_path.items():
            module = model.get_submodule(path)
            width = module.nf if hasattr(module, "nf") else module.out_features
            assert set.union(*parts) == set(range(width))
            assert sum(map(len, parts)) == width


@pytest.mark.parametrize("name", NAMES)
def test_layers_and_ranges(name):
    model = tiny_model(name)
    layers = layer_list(model)
    assert len(layers) == LAYERS
    sites = find_sites(model, ["q", "down"])
    assert [(s.role, s.layer) for s in sites] == [(r, i) for r in ("q", "down") for i in range(LAYERS)]
    for site in sites:
        assert any(module is model.get_submodule(site.path) for module in layers[site.layer].modules())
    assert [s.layer for s in find_sites(model, ["q"], 1, 1)] == [1]
    assert [s.layer for s in find_sites(model, ["q"], 2)] == [2]


@pytest.mark.parametrize("name", NAMES)
def test_sites_are_the_same_when_adapted_and_on_the_meta_device(name):
    model = tiny_model(name)
    roles = ["q", "k", "v", "o", "up", "down", ".*dense.*|.*proj.*|.*c_.*|.*W.*"]
    before = [(s.path, s.role, s.in_features, s.out_features) for s in find_sites(model, roles)]
    bank = Bank(model, "mean")
    bank.add("x", AdapterSpec(targets=tuple(roles), rank=2), 2, torch.Generator())
    assert [(s.path, s.role, s.in_features, s.out_features) for s in find_sites(model, roles)] == before
    meta = tiny_model(name).to("meta")
    assert [(s.path, s.role, s.in_features, s.out_features) for s in find_sites(meta, roles)] == before


def test_a_pattern_matches_whole_paths():
    model = tiny_model("llama")
    sites = find_sites(model, [r"self_attn\.[qv]_proj"], last=0)
    assert [s.path for s in sites] == ["layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj"]
    assert [(s.role, s.out_features) for s in sites] == [("self_attn.q_proj", 32), ("self_attn.v_proj", 16)]
    with pytest.raises(InputError):
        find_sites(model, ["q_proj"])


def test_a_site_that_two_targets_match_is_adapted_once():
    model = tiny_model("llama")
    sites = find_sites(model, ["q", "q", r".*q_proj", r".*[qk]_proj"], last=0)
    assert [(s.role, s.path.rpartition(".")[2]) for s in sites] == [("q", "q_proj"), ("self_attn.k_proj", "k_proj")]
    groups = plan_groups(model, AdapterSpec(targets=(r".*q_proj", r".*[qk]_proj"), rank=2))
    assert sum(len(g.sites) for g in groups) == 2 * LAYERS
    twice = find_sites(tiny_model("gpt_neox"), ["k", "k"])
    assert len(twice) == LAYERS


def test_an_unknown_target_is_reported_with_the_valid_ones():
    with pytest.raises(InputError) as caught:
        find_sites(tiny_model("llama"), ["self_attn.q_prj"])
    assert "'self_attn.q_prj'" in caught.value.what
    assert "llama" in caught.value.what
    assert caught.value.where == "adapter.targets"
    assert "did you mean 'self_attn.q_proj'?" in caught.value.fix
    assert "mlp.down_proj" in caught.value.fix
    with pytest.raises(InputError, match="'gate' matches no linear map of architecture 'bert'"):
        find_sites(tiny_model("bert"), ["gate"])


def test_a_target_that_is_no_regular_expression():
    with pytest.raises(InputError, match=r"target '\*q' is not a regular expression") as caught:
        find_sites(tiny_model("llama"), ["*q"])
    assert caught.value.where == "adapter.targets"


@pytest.mark.parametrize(("first", "last"), [(3, None), (-1, 2), (2, 1), (0, 3)])
def test_an_invalid_range_is_reported_with_the_base_layers(first, last):
    with pytest.raises(InputError) as caught:
        find_sites(tiny_model("llama"), ["q"], first, last)
    assert caught.value.where == "adapter.layers"
    assert "3 layers (0 to 2)" in caught.value.what


def test_an_architecture_without_an_entry_takes_patterns_only():
    model = tiny_model("llama")
    model.config.model_type = "novel"
    assert len(find_sites(model, [".*q_proj"])) == LAYERS
    with pytest.raises(InputError, match="'q' matches no linear map of architecture 'novel'"):
        find_sites(model, ["q"])
    model.config.num_hidden_layers = 7
    with pytest.raises(InputError, match="cannot find the layers of architecture 'novel'"):
        find_sites(model, [".*q_proj"])
