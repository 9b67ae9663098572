"""Router features are computed once: later requests for more rows add to them, any router reads its part of them."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference_features import router_features
from safetensors.torch import load_file, save_file
from tiny import ANIMALS, COLOURS, LAYERS, WIDTH, sentences, write_rows

from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import Choice, collate, encode_inputs, pad_id_of
from ttmoe.features import FeatureSpec
from workers.base.resident import load_resident_base
from workers.cache import feature_store
from workers.cache.feature_store import (
    LOOSE,
    PLAIN,
    SPLITS,
    STRIPPED,
    TEXT_FORMS,
    compute_features,
    feature_folder,
    features_complete,
    load_features,
    row_counts,
)
from workers.cache.tokens import load_tokenized_rows
from workers.cache.trunk_states import load_or_compute_trunk
from workers.data.prepared import load_split, prepare_task
from workers.data.task import Task
from workers.data.text_forms import strip_formatting
from workers.training.batches import TokenizedRows, to_input
from workers.training.checksummed_files import CorruptFileError

ALL = FeatureSpec("all", "both")
SPECS = [FeatureSpec(layers, pooling) for layers in ("all", "last", "embeddings", (2, 0), (1,), (0, 1))
         for pooling in ("both", "mean", "last")]  # fmt: skip


def compute(base, data, cache, rows=50, report=lambda progress: None, depth=0):
    return compute_features(base, data, rows, cache, threads=1, device="cpu", report=report, depth=depth)


def found_in(folder, data, spec=ALL, rows=50):
    """Copies of every split's features, as a router of these rows reads them: those of a whole file are its pages."""
    counts = row_counts(data, rows)
    return {split: load_features(folder, split, counts[split], spec).clone() for split in SPLITS}


def keep_trunk(base, data, cache, depth, splits=("train", "validation", "test")):
    """What training leaves behind."""
    bench = load_resident_base(base, "cpu")
    for split in splits:
        rows = load_tokenized_rows(base, bench.tokenizer, data, split, cache)
        assert load_or_compute_trunk(bench.bank, rows, base=base, fingerprint=data.fingerprint, split=split,
                                     depth=depth, pad_id=bench.pad_id, cache=cache, budget=10**9,
                                     report=lambda progress: None)  # fmt: skip


def examples_of(data, split):
    source, form = TEXT_FORMS.get(split, (split, lambda example: example))
    return [form(e) for e in load_split(data, source)]


@pytest.fixture(scope="module")
def alone(base):
    """The features of one example as a router reads them of the base itself."""
    model, tokenizer = load_body(base), load_tokenizer(base)

    def read(example, spec=ALL):
        (item,) = encode_inputs(tokenizer, [to_input(example)], base.max_length)
        return router_features(model, collate([item.whole], pad_id_of(tokenizer)), spec)[0]

    return read


@pytest.fixture
def layers_run(base):
    """For every time that a layer of the resident base ran its number, and how many rows went through it."""
    seen, layers = [], load_resident_base(base, "cpu").bank.trunk(0).layers
    hooks = [
        layer.attention.register_forward_hook(lambda module, args, out, i=i: seen.append((i, len(out[0]))))
        for i, layer in enumerate(layers)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def choice(tmp_path_factory):
    """A prepared task on texts with two or three options, in the form of an examination."""
    folder, texts = tmp_path_factory.mktemp("choice"), [text for text, _ in sentences(90, ANIMALS, "south")]
    rows = [{"text": f"Question: {text}?", "options": ["(red)", "Green,", "north1"][: 2 + i % 2], "label": i % 2}
            for i, text in enumerate(texts)]  # fmt: skip
    config = {"kind": "choice", "source": {"path": str(write_rows(folder / "rows.jsonl", rows))},
              "columns": {"text": "text", "choices": "options"}, "label": {"column": "label"},
              "split": {"validation": 0.2, "test": 0.2}}  # fmt: skip
    return prepare_task("which", Task.model_validate(config), folder)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (FeatureSpec((0, 2), "both"), FeatureSpec((0, 2), "both")),
        (FeatureSpec((0, 2), "both"), FeatureSpec((2,), "last")),
        (FeatureSpec((2, 0), "mean"), FeatureSpec((2, 0), "mean")),
    ],
)
def test_of_some_states_a_router_reads_what_it_would_of_all(base, colours, tmp_path, depth, stored, read):
    if depth:
        keep_trunk(base, colours, tmp_path, depth)
    everything = compute(base, colours, tmp_path, 30, depth=depth)
    few = compute_features(base, colours, 20, tmp_path, threads=1, device="cpu", report=lambda progress: None,
                           depth=depth, stored=stored)  # fmt: skip
    more = compute_features(base, colours, 30, tmp_path, threads=1, device="cpu", report=lambda progress: None,
                            depth=depth, stored=stored)  # fmt: skip
    assert few == more == feature_folder(base, colours, tmp_path, stored) != everything
    expected, found = (found_in(folder, colours, read, 30) for folder in (everything, more))
    for split, features in expected.items():
        torch.testing.assert_close(found[split], features, atol=2e-3, rtol=0)  # batches of other sizes
    size, whole = (sum(file.stat().st_size for file in folder.iterdir()) for folder in (more, everything))
    assert size < whole


def test_each_row_has_its_own_features_in_order(base, colours, tmp_path, alone):
    reports = []
    folder = compute(base, colours, tmp_path, report=reports.append)
    found = found_in(folder, colours)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 50, PLAIN: 50, "validation": len(load_split(colours, "validation")),
        STRIPPED: len(load_split(colours, "test")), LOOSE: len(load_split(colours, "validation"))}  # fmt: skip
    assert set(found) == set(SPLITS)
    for split, rows in found.items():
        assert rows.dtype == torch.half
        examples = examples_of(colours, split)
        for i in (0, len(rows) // 2, len(rows) - 1):
            torch.testing.assert_close(rows[i].float(), alone(examples[i]), rtol=0, atol=1e-3)
    assert found["train"].float().std(0).max() > 1e-2  # rows do differ: another order would show
    total = sum(map(len, found.values()))
    assert [r.step for r in reports] == sorted(r.step for r in reports)
    assert (reports[-1].step, reports[-1].steps) == (total, total)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_one_file_serves_every_router(base, colours, tmp_path_factory, alone, spec):
    """Whatever layers and poolings: as ``reference_features`` gives them, to half precision."""
    folder = compute(base, colours, tmp_path_factory.getbasetemp() / "features of all")
    found, examples = load_features(folder, "validation", 20, spec), load_split(colours, "validation")
    assert found.shape == (20, WIDTH * len(spec.poolings) * len(spec.indexes(LAYERS)))
    expected = torch.stack([alone(example, spec) for example in examples[:20]])
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-3)
    assert not torch.allclose(found.float(), expected.flip(1), atol=1e-2)


def test_nothing_is_computed_twice(base, colours, tmp_path, monkeypatch):
    folder = compute(base, colours, tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    def load(*_):
        raise AssertionError("the base was loaded again")

    monkeypatch.setattr(feature_store, "load_resident_base", load)
    assert compute(base, colours, tmp_path) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert sorted(name.rpartition("-")[0] for name in written) == sorted(SPLITS)  # and no scrap is left
    with pytest.raises(AssertionError, match="loaded again"):
        compute(base, colours, tmp_path, rows=51)


def test_more_rows_later_compute_those_alone_and_the_first_stay(base, colours, tmp_path, layers_run):
    first = found_in(compute(base, colours, tmp_path, rows=30), colours, rows=30)
    layers_run.clear()
    folder = compute(base, colours, tmp_path, rows=75)
    assert (
        sum(rows for layer, rows in layers_run if layer == 0) == 2 * 45
    )  # of training rows and their copies, and no others
    more = found_in(folder, colours, rows=75)
    assert len(more["train"]) == 75
    assert torch.equal(more["train"][:30], first["train"])
    assert torch.equal(more[PLAIN][:30], first[PLAIN])
    assert all(torch.equal(more[split], first[split]) for split in SPLITS if split not in ("train", PLAIN))
    assert [path.name for path in folder.glob("train-*")] == ["train-75.safetensors"]
    whole = found_in(compute(base, colours, tmp_path / "at once", rows=75), colours, rows=75)
    torch.testing.assert_close(more["train"], whole["train"], rtol=0, atol=1e-3)
    compute(base, colours, tmp_path, rows=10**6)
    assert len(load_features(folder, "train", row_counts(colours, 10**6)["train"], ALL)) == 180  # all that there are


def test_fewer_rows_later_are_the_first_of_those_and_nothing_is_computed(base, colours, tmp_path, layers_run):
    folder = compute(base, colours, tmp_path, rows=60)
    layers_run.clear()
    assert features_complete(folder, colours, 25)
    assert compute(base, colours, tmp_path, rows=25) == folder
    assert not layers_run
    few, many = found_in(folder, colours, rows=25), found_in(folder, colours, rows=60)
    assert len(few["train"]) == 25
    assert torch.equal(few["train"], many["train"][:25])
    assert len(many["train"]) == 60


def test_what_is_there_is_known_and_what_is_not_says_so(base, colours, tmp_path):
    folder = feature_folder(base, colours, tmp_path)
    assert not features_complete(folder, colours, 50)
    assert compute(base, colours, tmp_path) == folder
    assert features_complete(folder, colours, 50)
    assert not features_complete(folder, colours, 51)
    with pytest.raises(FileNotFoundError, match="does not contain 51 rows of the split train"):
        load_features(folder, "train", 51, ALL)
    (lost,) = folder.glob("stripped-*")
    lost.unlink()
    assert not features_complete(folder, colours, 50)


def test_only_the_split_that_is_lacking_is_computed_and_progress_goes_up(base, colours, tmp_path, layers_run):
    """More rows of the one, all of another that was lost: as a run leaves it that was stopped in between."""
    folder = compute(base, colours, tmp_path, rows=30)
    before = found_in(folder, colours, rows=30)
    (lost,) = folder.glob("validation-*")
    lost.unlink()
    layers_run.clear()
    reports = []
    compute(base, colours, tmp_path, rows=40, report=reports.append)
    assert sum(rows for layer, rows in layers_run if layer == 0) == 2 * 10 + len(before["validation"])
    steps = [report.step for report in reports]
    assert steps == sorted(steps)
    assert steps[-1] == reports[-1].steps == 2 * 40 + len(before["validation"])
    after = found_in(folder, colours, rows=40)
    torch.testing.assert_close(after["validation"], before["validation"], rtol=0, atol=1e-3)


def test_the_name_says_all_that_decides_them(base, colours, tmp_path):
    def path(b=base, d=colours):
        return feature_folder(b, d, tmp_path)

    others = [
        path(b=replace(base, digest="00" * 32)),
        path(b=replace(base, dtype="bfloat16")),
        path(b=replace(base, max_length=16)),
        path(d=replace(colours, fingerprint="0")),
    ]
    assert len({path(), *others}) == 1 + len(others)
    elsewhere = replace(base, folder="/elsewhere", id="other", source="hub")  # the same model by another name
    assert path(b=elsewhere) == path()
    assert json.dumps(path().name)  # plain characters only


def test_a_write_that_was_stopped_leaves_no_features(base, colours, tmp_path, monkeypatch):
    def stop(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            compute(base, colours, tmp_path)
    folder = feature_folder(base, colours, tmp_path)
    assert list(folder.iterdir()) == []
    assert load_features(compute(base, colours, tmp_path), "train", 50, ALL).shape[0] == 50


def flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def remove_digest(path):
    """As an earlier version wrote it."""
    save_file(load_file(path), path)


@pytest.mark.parametrize("damage", [flip, cut, remove_digest])
def test_damaged_features_are_never_read_and_are_made_again(base, colours, tmp_path, damage):
    folder = compute(base, colours, tmp_path)
    whole = found_in(folder, colours)
    path = folder / "train-50.safetensors"
    damage(path)
    if damage is flip:  # is not seen without reading the features
        assert features_complete(folder, colours, 50)
        with pytest.raises(CorruptFileError, match="train-50"):
            load_features(folder, "train", 50, ALL)
    assert not features_complete(folder, colours, 50)
    with pytest.raises(FileNotFoundError):
        load_features(folder, "train", 50, ALL)
    found = found_in(compute(base, colours, tmp_path), colours)
    assert all(torch.equal(found[split], rows) for split, rows in whole.items())


def test_damage_in_a_cache_that_may_only_be_read_is_named(base, colours, tmp_path, monkeypatch):
    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    folder = compute(base, colours, tmp_path)
    flip(folder / "train-50.safetensors")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CorruptFileError, match=f"train-50.*; somebody who may write to {folder} has to delete this"):
        load_features(folder, "train", 50, ALL)


@pytest.mark.parametrize("damage", [flip, cut])
def test_more_rows_are_not_added_to_damaged_ones(base, colours, tmp_path, damage, caplog):
    expected = found_in(compute(base, colours, tmp_path / "whole"), colours)["train"]
    folder = compute(base, colours, tmp_path, rows=30)
    damage(folder / "train-30.safetensors")
    assert torch.equal(found_in(compute(base, colours, tmp_path), colours)["train"], expected)
    assert ("computed again" in caplog.text) == (damage is flip)


def test_features_are_on_the_disk_before_they_have_their_name(base, colours, tmp_path, monkeypatch):
    synchronised, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: synchronised.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file)
    )
    folder = compute(base, colours, tmp_path)
    names = [path.removeprefix(f"{folder}/.").partition(".safetensors")[0] for path in synchronised]
    assert {path.stem for path in folder.iterdir()} <= set(names)


def test_what_a_killed_process_left_is_cleared_up_and_what_is_being_written_is_not(base, colours, tmp_path):
    folder = feature_folder(base, colours, tmp_path)
    folder.mkdir(parents=True)
    left, written = (folder / f".train-50.safetensors.{name}" for name in ("0123abcd", "4567cdef"))
    for path in (left, written):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    compute(base, colours, tmp_path)
    assert (left.exists(), written.exists()) == (False, True)


@pytest.fixture
def batches(base, monkeypatch):
    """The shapes (rows, tokens) of the batches of which features are computed."""
    shapes, collate_rows = [], feature_store.collate

    def record(*args):
        inputs = collate_rows(*args)
        shapes.append(tuple(inputs["input_ids"].shape))
        return inputs

    monkeypatch.setattr(feature_store, "collate", record)
    return shapes


def test_d18_a_batch_of_features_has_as_many_tokens_as_one_of_an_evaluation(
    base, colours, tmp_path, batches, monkeypatch
):
    """And at most 64 rows, or so many as a retry after out of memory leaves; the longest rows come first."""
    whole = found_in(compute(base, colours, tmp_path / "whole"), colours)
    assert max(rows for rows, _ in batches) == 60  # of the 60 test rows: a limit of tokens alone would not show here
    monkeypatch.setattr(feature_store, "batch_tokens", lambda device: {"cpu": 30}[device])
    batches.clear()
    small = found_in(compute(base, colours, tmp_path / "small"), colours)
    assert max(rows * tokens for rows, tokens in batches) <= 30
    assert batches[0][1] == max(tokens for _, tokens in batches)
    batches.clear()
    compute_features(base, colours, 50, tmp_path / "few", threads=1, device="cpu", report=print, batch_rows=2)
    assert max(rows for rows, _ in batches) == 2
    for split in SPLITS:
        torch.testing.assert_close(small[split], whole[split], rtol=0, atol=1e-3)


@pytest.mark.parametrize("depth", [0, 1])
def test_d18_features_never_ask_for_all_hidden_states(base, colours, tmp_path, depth):
    if depth:
        keep_trunk(base, colours, tmp_path, depth)
    asked, model = [], load_resident_base(base, "cpu").bank.model
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: asked.append(kwargs), with_kwargs=True)
    compute(base, colours, tmp_path, depth=depth)
    hook.remove()
    assert asked
    assert not any("output_hidden_states" in kwargs for kwargs in asked)


def test_d19_features_are_reported_from_the_start(base, colours, tmp_path, monkeypatch):
    """The base of a large model takes minutes to load."""
    reports, load = [], feature_store.load_resident_base
    monkeypatch.setattr(feature_store, "load_resident_base", lambda *args: reports.append("load") or load(*args))
    compute(base, colours, tmp_path, report=reports.append)
    assert (reports[0].state, reports[1]) == ("loading", "load")


def test_what_is_kept_of_a_row_is_its_pooled_states(base, colours, tmp_path):
    (path,) = compute(base, colours, tmp_path).glob("train-*")
    kept = load_file(path)["states"]
    assert (kept.dtype, kept.shape) == (torch.half, (50, LAYERS + 1, 2, WIDTH))
    torch.testing.assert_close(kept.float().norm(dim=-1), torch.ones(50, LAYERS + 1, 2), rtol=0, atol=1e-3)


@pytest.mark.parametrize("depth", [1, 2])
def test_features_from_a_kept_trunk_are_the_same(base, colours, tmp_path, layers_run, depth):
    plain = found_in(compute(base, colours, tmp_path / "plain"), colours)
    keep_trunk(base, colours, tmp_path, depth)
    layers_run.clear()
    kept = found_in(compute(base, colours, tmp_path, depth=depth), colours)
    below = sum(rows for layer, rows in layers_run if layer == 0)
    # Rows in another form are in no cache; besides, a trunk asks one layer, once, what it returns.
    lacking = sum(len(plain[form]) for form in TEXT_FORMS)
    assert lacking <= below <= lacking + 64
    for split in SPLITS:
        torch.testing.assert_close(kept[split], plain[split], rtol=0, atol=1e-3)


def test_more_rows_later_from_a_kept_trunk(base, colours, tmp_path):
    plain = found_in(compute(base, colours, tmp_path / "plain", rows=80), colours, rows=80)
    keep_trunk(base, colours, tmp_path, 1)
    first = found_in(compute(base, colours, tmp_path, rows=30, depth=1), colours, rows=30)
    more = found_in(compute(base, colours, tmp_path, rows=80, depth=1), colours, rows=80)
    assert torch.equal(more["train"][:30], first["train"])
    torch.testing.assert_close(more["train"], plain["train"], rtol=0, atol=1e-3)


def test_a_split_whose_trunk_is_not_kept_takes_the_whole_way(base, colours, tmp_path, layers_run):
    plain = found_in(compute(base, colours, tmp_path / "plain"), colours)
    keep_trunk(base, colours, tmp_path, 1, splits=("train",))
    made = list((tmp_path / "trunk").glob("[!.]*"))
    layers_run.clear()
    kept = found_in(compute(base, colours, tmp_path, depth=1), colours)
    ran = [sum(rows for layer, rows in layers_run if layer == i) for i in range(LAYERS)]
    assert ran[1] == sum(map(len, plain.values()))
    assert 0 < ran[0] < ran[1]
    for split in SPLITS:
        torch.testing.assert_close(kept[split], plain[split], rtol=0, atol=1e-3)
    assert list((tmp_path / "trunk").glob("[!.]*")) == made  # none was made for this


def test_of_a_choice_the_router_reads_the_whole(base, colours, tmp_path, monkeypatch):
    def choices(*args, original=load_tokenized_rows):
        rows = original(*args)
        return TokenizedRows([replace(item, options=(item.whole, item.whole)) for item in rows.items], rows.labels)

    plain = found_in(compute(base, colours, tmp_path / "plain"), colours)
    monkeypatch.setattr(feature_store, "load_tokenized_rows", choices)
    monkeypatch.setitem(globals(), "rows_of", choices)
    keep_trunk(base, colours, tmp_path, 1)
    kept = found_in(compute(base, colours, tmp_path, depth=1), colours)
    assert all(torch.equal(kept[split], plain[split]) for split in SPLITS)


def test_a_task_of_choices(base, choice, tmp_path, alone):
    found, examples = found_in(compute(base, choice, tmp_path), choice), load_split(choice, "validation")
    for i in (0, len(examples) - 1):
        whole = Choice(examples[i].texts[0], examples[i].choices)
        assert to_input(examples[i]) == whole
        torch.testing.assert_close(found["validation"][i].float(), alone(examples[i]), rtol=0, atol=1e-3)


def test_stripped_rows_are_the_first_test_rows_without_their_form(base, choice, tmp_path, alone, monkeypatch):
    monkeypatch.setattr(feature_store, "FORM_ROWS", 7)
    found, examples = found_in(compute(base, choice, tmp_path), choice), load_split(choice, "test")
    assert len(found[STRIPPED]) == len(found[PLAIN]) == 7 < len(examples)
    for rows, example in zip(found[STRIPPED], examples, strict=False):
        words = example.texts[0].removeprefix("Question: ").removesuffix("?")
        bare = f"{words} red green" + " north1" * (len(example.choices) == 3)
        assert bare.split()[-1] in (*COLOURS, "north1")
        assert strip_formatting(example).texts == (bare,)
        torch.testing.assert_close(rows.float(), alone(replace(example, texts=(bare,), choices=())), rtol=0, atol=1e-3)
        assert not torch.allclose(rows.float(), alone(example), atol=1e-2)
