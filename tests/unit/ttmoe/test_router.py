from __future__ import annotations

import json

import pytest
import torch
from architectures import batch, tiny_model
from library import router_of

from ttmoe.errors import InputError
from ttmoe.features import FeatureSpec, router_features
from ttmoe.router import Router, load_router, save_router


def test_scores_are_one_linear_map_of_standardised_features():
    router = router_of()
    features = torch.randn(50, 128, generator=torch.Generator().manual_seed(0)) * 3 + 7
    router.fit_scale(features)
    expected = (features - features.mean(0)) / features.std(0) @ router.gate.weight.T + router.gate.bias
    torch.testing.assert_close(router(features), expected)
    names, shares = router.eval().route(features)
    assert names == [router.tasks[i] for i in expected.argmax(-1).tolist()]
    torch.testing.assert_close(shares, expected.softmax(-1).detach())
    constant = torch.full((4, 128), 3.0)
    router.fit_scale(constant)
    assert router(constant).isfinite().all()


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
    names, shares = router.route(torch.randn(20, 128))
    assert shares.isfinite().all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(20))
    assert ("animals" in names) == (bad == torch.inf)


@pytest.mark.parametrize("features", [FeatureSpec((0, 1)), FeatureSpec("last"), FeatureSpec("all", "last")])
def test_round_trip(tmp_path, features):
    router = router_of(features).eval()
    router.fit_scale(torch.randn(9, router.mean.numel()))
    made = save_router(router, tmp_path, {"digest": "d"}, {"colours": "h"}, {"accuracy": 0.9})
    found, manifest = load_router(tmp_path)
    assert manifest == json.loads(json.dumps(made))
    assert (found.tasks, found.features) == (router.tasks, router.features)
    x = torch.randn(5, router.mean.numel())
    assert torch.equal(found(x), router(x))


def test_files_that_are_missing_or_altered(tmp_path):
    with pytest.raises(InputError, match="no readable router"):
        load_router(tmp_path)
    save_router(router_of(), tmp_path, {}, {}, {})
    data = bytearray((tmp_path / "router.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "router.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="altered or cut"):
        load_router(tmp_path)
    broken = router_of()
    broken.deviation[3] = torch.nan
    save_router(broken, tmp_path, {}, {}, {})
    with pytest.raises(InputError, match="not finite"):
        load_router(tmp_path)
    (tmp_path / "router.json").write_text("{}")
    with pytest.raises(InputError, match=r"no readable router \('weights_digest'\)"):
        load_router(tmp_path)
    (tmp_path / "router.json").write_text("{")
    with pytest.raises(InputError, match="no readable router"):
        load_router(tmp_path)


def test_feature_indexes():
    assert FeatureSpec("last").indexes(6) == (6,)
    assert FeatureSpec("embeddings").indexes(6) == (0,)
    assert FeatureSpec("all").indexes(2) == (0, 1, 2)
    assert FeatureSpec((4, 1)).indexes(6) == (4, 1)
    with pytest.raises(InputError, match="hidden state 7 is not among 0 to 6"):
        FeatureSpec((0, 7)).indexes(6)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_features_are_pooled_states_at_unit_length_side_by_side(name, pooling):
    model, inputs = tiny_model(name), batch()
    features = router_features(model, inputs, FeatureSpec((0, 2), pooling))
    assert features.shape == (6, 64)
    states = model(**inputs, output_hidden_states=True).hidden_states
    for i, layer in enumerate((0, 2)):
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            real = states[layer][row][mask]
            pooled = real.mean(0) if pooling == "mean" else real[-1]
            torch.testing.assert_close(features[row, 32 * i : 32 * (i + 1)], pooled / pooled.norm())
    assert not features.requires_grad
