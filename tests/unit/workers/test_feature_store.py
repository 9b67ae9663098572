import json
from dataclasses import replace

import pytest
import torch

from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import collate, encode_inputs, pad_id_of
from ttmoe.features import FeatureSpec, router_features
from workers import feature_store
from workers.batches import as_input
from workers.feature_store import compute_features, feature_path, load_features
from workers.prepared import load_split

SPEC = FeatureSpec("all", "mean")


def compute(base, data, cache, rows=50, report=lambda progress: None):
    return compute_features(base, data, SPEC, rows, cache, threads=1, device="cpu", report=report)


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

    monkeypatch.setattr(feature_store, "load_body", load)
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
