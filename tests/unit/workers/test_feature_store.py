import json
from dataclasses import replace

import pytest
import torch

from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import collate, encode_inputs, pad_id_of
from ttmoe.features import FeatureSpec, router_features
from workers import feature_store
from workers.batches import Rows, as_input
from workers.bench import resident
from workers.feature_store import SPLITS, compute_features, feature_path, load_features
from workers.prepared import load_split
from workers.token_store import rows_of
from workers.trunk_cache import open_trunk

SPEC = FeatureSpec("all", "mean")


def compute(base, data, cache, rows=50, report=lambda progress: None, spec=SPEC, depth=0):
    return compute_features(base, data, spec, rows, cache, threads=1, device="cpu", report=report, depth=depth)


def keep_trunk(base, data, cache, depth, splits=SPLITS):
    """What training leaves behind."""
    bench = resident(base, "cpu")
    for split in splits:
        rows = rows_of(base, bench.tokenizer, data, split, cache)
        assert open_trunk(bench.bank, rows, base=base, fingerprint=data.fingerprint, split=split, depth=depth,
                          pad_id=bench.pad_id, cache=cache, budget=10**9, report=lambda progress: None)  # fmt: skip


@pytest.fixture
def layers_run(base):
    """The numbers of the layers that the resident base ran, in order."""
    seen, layers = [], resident(base, "cpu").bank.trunk(0).layers
    hooks = [layer.attention.register_forward_hook(lambda *_, i=i: seen.append(i)) for i, layer in enumerate(layers)]
    yield seen
    for hook in hooks:
        hook.remove()


def test_each_row_has_its_own_features_in_order(base, colours, tmp_path):
    reports = []
    found = load_features(compute(base, colours, tmp_path, report=reports.append))
    model, tokenizer = load_body(base), load_tokenizer(base)
    for split, limit in (("train", 50), ("validation", None), ("test", None)):
        examples = load_split(colours, split)[:limit]
        assert len(found[split]) == len(examples)
        for i in (0, len(examples) // 2, len(examples) - 1):
            (item,) = encode_inputs(tokenizer, [as_input(examples[i])], base.max_length)
            alone = router_features(model, collate([item.whole], pad_id_of(tokenizer)), SPEC)
            assert torch.allclose(found[split][i], alone[0], atol=1e-5)
    assert found["train"].std(0).max() > 1e-2  # rows do differ: another order would show
    total = sum(map(len, found.values()))
    assert (reports[-1].step, reports[-1].steps) == (total, total)


def test_nothing_is_computed_twice(base, colours, tmp_path, monkeypatch):
    path = compute(base, colours, tmp_path)
    written = path.stat().st_mtime_ns

    def load(*_):
        raise AssertionError("the base was loaded again")

    monkeypatch.setattr(feature_store, "resident", load)
    assert compute(base, colours, tmp_path) == path
    assert path.stat().st_mtime_ns == written
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # and no scrap is left
    with pytest.raises(AssertionError, match="loaded again"):
        compute(base, colours, tmp_path, rows=49)


def test_the_name_says_all_that_decides_them(base, colours, tmp_path):
    def path(b=base, d=colours, spec=SPEC, rows=50):
        return feature_path(b, d, spec, rows, tmp_path)

    others = [
        path(b=replace(base, digest="00" * 32)),
        path(b=replace(base, dtype="bfloat16")),
        path(b=replace(base, max_length=16)),
        path(d=replace(colours, fingerprint="0")),
        path(spec=FeatureSpec("last", "mean")),
        path(spec=FeatureSpec((0, 1), "mean")),
        path(spec=FeatureSpec("all", "last")),
        path(rows=51),
    ]
    assert len({path(), *others}) == 1 + len(others)
    elsewhere = replace(base, folder="/elsewhere", id="other", source="hub")  # the same model by another name
    assert path(b=elsewhere) == path()
    assert json.dumps(path().name)  # plain characters only


def test_a_write_that_was_stopped_leaves_no_features(base, colours, tmp_path, monkeypatch):
    def stop(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            compute(base, colours, tmp_path)
    assert load_features(compute(base, colours, tmp_path))["train"].shape[0] == 50


@pytest.mark.parametrize("layers", ["all", "last", "embeddings", (2, 0), (1,)])
@pytest.mark.parametrize("depth", [1, 2])
def test_features_from_a_kept_trunk_are_the_same(base, colours, tmp_path, layers_run, layers, depth):
    spec = FeatureSpec(layers, "mean")
    plain = load_features(compute(base, colours, tmp_path / "plain", spec=spec))
    keep_trunk(base, colours, tmp_path, depth)
    layers_run.clear()
    kept = load_features(compute(base, colours, tmp_path, spec=spec, depth=depth))
    assert len([layer for layer in layers_run if layer < depth]) <= 1  # a trunk asks one layer, once, what it returns
    for split in SPLITS:
        torch.testing.assert_close(kept[split], plain[split], rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", [FeatureSpec("all", "last"), FeatureSpec("last", "last")])
def test_what_is_kept_with_other_pooling_serves_above_only(base, colours, tmp_path, layers_run, spec):
    plain = load_features(compute(base, colours, tmp_path / "plain", spec=spec))
    keep_trunk(base, colours, tmp_path, 1)
    layers_run.clear()
    kept = load_features(compute(base, colours, tmp_path, spec=spec, depth=1))
    assert layers_run.count(1) > 1
    assert layers_run.count(0) <= 1 if spec.layers == "last" else layers_run.count(0) == layers_run.count(1)
    for split in SPLITS:
        torch.testing.assert_close(kept[split], plain[split], rtol=0, atol=1e-5)


def test_a_split_whose_trunk_is_not_kept_takes_the_whole_way(base, colours, tmp_path, layers_run):
    plain = load_features(compute(base, colours, tmp_path / "plain"))
    keep_trunk(base, colours, tmp_path, 1, splits=("train",))
    made = list((tmp_path / "trunk").glob("[!.]*"))
    layers_run.clear()
    kept = load_features(compute(base, colours, tmp_path, depth=1))
    assert 1 < layers_run.count(0) < layers_run.count(1)
    for split in SPLITS:
        torch.testing.assert_close(kept[split], plain[split], rtol=0, atol=1e-5)
    assert list((tmp_path / "trunk").glob("[!.]*")) == made  # none was made for this


def test_of_a_choice_the_router_reads_the_whole(base, colours, tmp_path, monkeypatch):
    def choices(*args, original=rows_of):
        rows = original(*args)
        return Rows([replace(item, options=(item.whole, item.whole)) for item in rows.items], rows.labels)

    plain = load_features(compute(base, colours, tmp_path / "plain"))
    monkeypatch.setattr(feature_store, "rows_of", choices)
    monkeypatch.setitem(globals(), "rows_of", choices)
    keep_trunk(base, colours, tmp_path, 1)
    kept = load_features(compute(base, colours, tmp_path, depth=1))
    assert all(torch.equal(kept[split], plain[split]) for split in SPLITS)
