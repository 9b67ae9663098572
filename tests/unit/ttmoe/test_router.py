"""The router: scores, routes, its files, and its features."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from architectures import batch, tiny_model
from library import FEATURES, router_of
from reference_features import router_features
from safetensors.torch import save

from ttmoe.errors import InputError
from ttmoe.familiarity import Familiarity
from ttmoe.features import FeatureSpec, pool_states
from ttmoe.router import Router, load_router, save_router
from ttmoe.subspace import Subspace


def fitted(features=FEATURES, familiar=True):
    """Build a router with every weight and buffer set."""
    router, draw = router_of(features).eval(), torch.Generator().manual_seed(1)
    width = router.mean.numel()
    with torch.no_grad():
        router.mean.copy_(torch.randn(width, generator=draw))
        router.deviation.copy_(torch.rand(width, generator=draw) + 0.5)
        router.gate.bias.copy_(torch.randn(3, generator=draw))
        router.temperature.fill_(2.5)
    if familiar:
        clouds = [torch.randn(30, width, generator=draw) + i for i in range(3)]
        router.familiarity = Familiarity.from_subspace(Subspace.fit(clouds, router.standardise))
        rows = torch.cat(clouds)
        experts = router(rows).argmax(-1)
        router.familiarity.fit_thresholds(router.familiarity(router.standardise(rows), experts), experts, 0.1)
    return router


def test_scores_are_one_linear_map_of_standardised_features_divided_by_the_temperature():
    router, features = fitted(familiar=False), torch.randn(50, 256, generator=torch.Generator().manual_seed(0)) * 3 + 7
    scaled = (features - router.mean) / router.deviation
    expected = ((scaled @ router.gate.weight.T + router.gate.bias) / 2.5).detach()
    torch.testing.assert_close(router(features).detach(), expected)
    torch.testing.assert_close(router.standardise(features), scaled)
    routes = router.route(features)
    assert routes.names == [router.tasks[i] for i in expected.argmax(-1).tolist()]
    assert len(set(routes.names)) > 1
    assert routes.probabilities == pytest.approx(expected.softmax(-1).amax(-1).tolist(), abs=1e-5)
    assert routes.familiar == [True] * 50
    half = router(features.half()).detach()  # kept features are halves: what is computed with them is not
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, router(features.half().float()).detach())


def test_familiarity_is_measured_with_the_chosen_task():
    router, draw = fitted(), torch.Generator().manual_seed(4)
    rows = torch.cat([torch.randn(40, 256, generator=draw) + 1, torch.randn(5, 256, generator=draw) * 99])
    routes, places = router.route(rows), {task: i for i, task in enumerate(router.tasks)}
    experts = torch.tensor([places[name] for name in routes.names])
    assert routes.familiar == router.familiarity.is_familiar(router.standardise(rows), experts).tolist()
    assert routes.familiar[40:] == [False] * 5
    assert sum(routes.familiar[:40]) > 20


def test_a_row_goes_to_the_group_with_the_highest_probability(tmp_path):
    router = Router(("a", "b", "c", "d"), 4, FeatureSpec(), groups=[["b", "d"]]).eval()
    scores = torch.tensor([[0.40, 0.30, 0.05, 0.25], [0.70, 0.20, 0.05, 0.05], [0.001, 0.99, 0.004, 0.005]])
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(4))
    routes = router.route(scores.log())
    assert routes.names == ["b", "a", "b"]
    assert routes.probabilities == pytest.approx([0.55, 0.70, 0.995])
    assert routes.shares[0] == pytest.approx({"b": 30 / 55, "d": 25 / 55})
    assert routes.shares[1:] == [{"a": 1.0}, {"b": 1.0}]  # d has less than one percent of the third row
    router.groups = ()
    assert router.route(scores.log()).names == ["a", "a", "b"]
    router.groups = (("b", "d"),)
    save_router(router, tmp_path, {}, {}, {})
    assert load_router(tmp_path)[0].route(scores.log()) == routes


def test_in_a_large_group_nearly_equal_members_all_answer():
    tasks = [str(i) for i in range(300)]
    router = Router(tasks, 2, FeatureSpec(), groups=[tasks]).eval()
    (shares,) = router.route(torch.zeros(1, 2)).shares
    assert len(shares) == 300
    assert sum(shares.values()) == pytest.approx(1)


def test_noise_is_for_training_only():
    router = Router(("a", "b"), 4, FeatureSpec(), noise=1.0)
    x = torch.ones(3, 4)
    assert not torch.equal(router(x), router(x))
    router.eval()
    assert torch.equal(router(x), router(x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite(bad):
    router = router_of().eval()
    with torch.no_grad():
        router.gate.bias[1] = bad
    routes = router.route(torch.randn(20, 256, generator=torch.Generator().manual_seed(0)))
    assert all(1 / 3 < share <= 1 for share in routes.probabilities)  # of the likeliest of three
    assert ("animals" in routes.names) == (bad == torch.inf)


def test_features_that_are_not_finite_are_unfamiliar():
    router, rows = fitted(), torch.ones(3, 256)
    rows[0, 5], rows[1, 7] = torch.nan, torch.inf
    routes = router.route(rows)
    assert routes.familiar[:2] == [False, False]
    assert all(0 < share <= 1 for share in routes.probabilities)


@pytest.mark.parametrize("features", [FeatureSpec((0, 1)), FeatureSpec("last"), FeatureSpec("all", "last")])
@pytest.mark.parametrize("familiar", [False, True])
def test_round_trip(tmp_path, features, familiar):
    router = fitted(features, familiar)
    made = save_router(router, tmp_path, {"digest": "d"}, {"colours": "h"}, {"accuracy": 0.9}, "blend")
    found, manifest = load_router(tmp_path)
    assert manifest == json.loads(json.dumps(made))
    assert (manifest["kind"], manifest["lock"]) == ("blend", {"colours": "h"})
    assert (found.tasks, found.features, found.training) == (router.tasks, router.features, False)
    assert found.state_dict().keys() == router.state_dict().keys()
    for key, value in router.state_dict().items():
        assert found.state_dict()[key].dtype == value.dtype
        assert torch.equal(found.state_dict()[key], value)
    rows = torch.randn(30, router.mean.numel(), generator=torch.Generator().manual_seed(2)) + 1
    assert torch.equal(found(rows), router(rows))
    assert found.route(rows) == router.route(rows)
    again = tmp_path / "again"
    save_router(found, again, {"digest": "d"}, {"colours": "h"}, {"accuracy": 0.9}, "blend")
    for name in ("router.json", "router.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def save_weights(folder, router, weights):
    """Save the router with other weights and their digest."""
    manifest = save_router(router, folder, {}, {}, {})
    (folder / "router.safetensors").write_bytes(save(weights))
    manifest["weights_digest"] = hashlib.sha256(save(weights)).hexdigest()
    (folder / "router.json").write_text(json.dumps(manifest))


def test_with_a_router_without_familiarity_every_row_is_familiar(tmp_path):
    """Early manifests have no kind of router."""
    router = fitted(familiar=False)
    save_router(router, tmp_path, {}, {}, {})
    manifest = json.loads((tmp_path / "router.json").read_text())
    del manifest["kind"]
    (tmp_path / "router.json").write_text(json.dumps(manifest))
    found, _ = load_router(tmp_path)
    assert found.familiarity is None
    assert found.route(torch.full((2, 256), torch.nan)).familiar == [True, True]


def test_weights_of_another_form(tmp_path):
    router = fitted()
    weights = router.state_dict()
    for others in ({k: v for k, v in weights.items() if k != "temperature"}, {**weights, "more": torch.ones(1)},
                   {k: v for k, v in weights.items() if k != "familiarity.means"},
                   {**weights, "gate.weight": torch.ones(2, 256)}):  # fmt: skip
        save_weights(tmp_path, router, others)
        with pytest.raises(InputError, match="do not match the router") as caught:
            load_router(tmp_path)
        assert "run `ttmoe run` again" in caught.value.fix


@pytest.mark.parametrize("name", ["mean", "temperature", "gate.bias", "familiarity.whitenings", "familiarity.means"])
def test_weights_that_are_not_finite(tmp_path, name):
    router = fitted()
    router.state_dict()[name].view(-1)[0] = torch.nan
    save_router(router, tmp_path, {}, {}, {})
    with pytest.raises(InputError, match="not finite"):
        load_router(tmp_path)


def test_a_threshold_may_be_infinite_and_is_a_number(tmp_path):
    router = fitted()
    router.familiarity.thresholds[:] = torch.tensor([-torch.inf, torch.inf, 0.0])
    save_router(router, tmp_path, {}, {}, {})
    assert torch.equal(load_router(tmp_path)[0].familiarity.thresholds, router.familiarity.thresholds)
    router.familiarity.thresholds[1] = torch.nan  # with it nothing would ever be known
    save_router(router, tmp_path, {}, {}, {})
    with pytest.raises(InputError, match="not finite"):
        load_router(tmp_path)


def test_files_that_are_missing_or_altered(tmp_path):
    with pytest.raises(InputError, match="cannot read the router"):
        load_router(tmp_path)
    save_router(fitted(), tmp_path, {}, {}, {})
    whole = (tmp_path / "router.safetensors").read_bytes()
    for data in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-9], b""):
        (tmp_path / "router.safetensors").write_bytes(data)
        with pytest.raises(InputError, match="altered or truncated"):
            load_router(tmp_path)
    (tmp_path / "router.json").write_text("{}")
    with pytest.raises(InputError, match=r"cannot read the router \('weights_digest'\)"):
        load_router(tmp_path)
    (tmp_path / "router.json").write_text("{")
    with pytest.raises(InputError, match="cannot read the router"):
        load_router(tmp_path)


def test_feature_indexes():
    assert FeatureSpec("last").indexes(6) == (6,)
    assert FeatureSpec("embeddings").indexes(6) == (0,)
    assert FeatureSpec("all").indexes(2) == (0, 1, 2)
    assert FeatureSpec((4, 1)).indexes(6) == (4, 1)
    with pytest.raises(InputError, match="hidden state 7 is not in the range from 0 to 6"):
        FeatureSpec((0, 7)).indexes(6)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("pooling", ["mean", "last", "both"])
def test_features_are_concatenated_pooled_states_of_unit_length(name, pooling):
    model, inputs = tiny_model(name), batch()
    features = router_features(model, inputs, FeatureSpec((0, 2), pooling))
    poolings = ("mean", "last") if pooling == "both" else (pooling,)
    assert FeatureSpec((0, 2), pooling).poolings == poolings
    assert features.shape == (6, 64 * len(poolings))
    states = model(**inputs, output_hidden_states=True).hidden_states
    places = [(layer, how) for layer in (0, 2) for how in poolings]
    for i, (layer, how) in enumerate(places):
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            real = states[layer][row][mask]
            pooled = real.mean(0) if how == "mean" else real[-1]
            torch.testing.assert_close(features[row, 32 * i : 32 * (i + 1)], pooled / pooled.norm())
    assert not features.requires_grad


def test_pooled_states_do_not_depend_on_padding():
    model, inputs = tiny_model("bert"), batch()
    pooled = pool_states(model(**inputs, output_hidden_states=True).hidden_states, inputs["attention_mask"])
    assert pooled.shape == (6, 4, 2, 32)
    torch.testing.assert_close(pooled.norm(dim=-1), torch.ones(6, 4, 2))
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        alone = {key: value[row : row + 1, :length] for key, value in inputs.items()}
        states = model(**alone, output_hidden_states=True).hidden_states
        torch.testing.assert_close(pool_states(states, alone["attention_mask"])[0], pooled[row], rtol=0, atol=1e-5)
