"""Answers about a base that planning remembers."""

from __future__ import annotations

import shutil
from dataclasses import replace

import library_plan
import pytest
import tiny_causal

from orchestrator.plan import adapter_fits
from orchestrator.plan.adapter_fits import AdapterFits
from orchestrator.plan.planning import make_plan
from ttmoe.adapter import AdapterSpec
from ttmoe.errors import InputError
from workers.data.prepared import load_split


@pytest.fixture
def calls(monkeypatch):
    """Record the calls that need the base's modules."""
    made = []

    def record(name):
        original = getattr(adapter_fits, name)
        monkeypatch.setattr(adapter_fits, name, lambda *args: made.append(name) or original(*args))

    for name in ("empty_body", "plan_groups", "require_language_head"):
        record(name)
    return made


def test_equal_adapters_are_fitted_once_and_a_second_plan_builds_no_model(base_folder, tmp_path, calls):
    first = library_plan.plan_of(base_folder, tmp_path)
    assert calls == ["empty_body", "plan_groups"]  # of two tasks
    second = library_plan.plan_of(base_folder, tmp_path)
    assert calls == ["empty_body", "plan_groups"]
    assert second == first


def test_a_changed_adapter_is_fitted(base_folder, tmp_path, calls):
    first = library_plan.plan_of(base_folder, tmp_path)
    second = library_plan.plan_of(base_folder, tmp_path, tasks={"animals": {"adapter": {"rank": 2}}})
    assert calls == ["empty_body", "plan_groups"] * 2
    assert second.experts["colours"] == first.experts["colours"]
    assert second.experts["animals"].job.parameters < first.experts["animals"].job.parameters


def test_the_share_of_rows_that_are_cut_is_counted_once_for_their_data_and_length(base_folder, tmp_path, monkeypatch):
    plan = library_plan.plan_of(base_folder, tmp_path)
    data, cache = plan.experts["colours"].job.data, tmp_path / "runs" / "cache"
    assert plan.experts["colours"].cut_share == 0
    words = [len(example.texts[0].split()) for example in load_split(data, "train")]
    length = sorted(words)[len(words) // 2] + 2  # of the median text, with the two tokens around it
    short, load = replace(plan.base, max_length=length), adapter_fits.load_tokenizer
    fits = AdapterFits(short, cache)
    assert 0 < fits.cut_share(data) < 1
    assert fits.cut_share(data) == sum(count + 2 > length for count in words) / len(words)
    fits.save()
    monkeypatch.setattr(adapter_fits, "load_tokenizer", lambda base: pytest.fail("it was counted"))
    assert AdapterFits(short, cache).cut_share(data) == fits.cut_share(data)
    monkeypatch.setattr(adapter_fits, "load_tokenizer", load)
    whole = (data.folder / "train.parquet").read_bytes()
    for damaged in (b"damaged", whole.replace(b"north", b"\xb7orth", 1)):
        (data.folder / "train.parquet").write_bytes(damaged)
        assert AdapterFits(replace(short, max_length=3), cache).cut_share(data) == 0


def test_a_text_is_not_read_beyond_what_could_be_the_tokens(base_folder, tmp_path, monkeypatch):
    plan = library_plan.plan_of(base_folder, tmp_path)
    read = []
    original = adapter_fits.tokenize
    monkeypatch.setattr(adapter_fits, "tokenize", lambda t, rows, n: read.extend(rows) or original(t, rows, n))
    data = plan.experts["colours"].job.data
    long = [replace(each, texts=(f"{each.texts[0]} " * 1000,)) for each in load_split(data, "train")[:5]]
    monkeypatch.setattr(adapter_fits, "first_examples", lambda *args: long)
    fits = AdapterFits(replace(plan.base, max_length=5), tmp_path / "other")
    assert fits.cut_share(data) == 1
    assert {len(each.texts[0]) for each in read} == {6 * 64}


def test_a_tokenizer_that_cannot_be_loaded_is_an_error_of_the_base(base_folder, tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(base_folder, copy)
    (copy / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "none"}}')
    with pytest.raises(InputError, match="transformers cannot load its tokenizer"):
        library_plan.plan_of(copy, tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"fits": {"x": {"shapes": 1}}}', "[]"])
def test_a_damaged_file_is_computed_again(base_folder, tmp_path, calls, content):
    first = library_plan.plan_of(base_folder, tmp_path)
    (file,) = (tmp_path / "runs" / "cache" / "fits").iterdir()
    written = file.read_text()
    file.write_text(content)
    assert library_plan.plan_of(base_folder, tmp_path) == first
    assert calls == ["empty_body", "plan_groups"] * 2
    assert file.read_text() == written


def test_another_base_or_code_has_other_fits(base_folder, tmp_path, calls, monkeypatch):
    base = library_plan.plan_of(base_folder, tmp_path).base
    cache, adapter = tmp_path / "runs" / "cache", AdapterSpec(rank=4)
    fit = AdapterFits(base, cache).fit(adapter)
    assert len(calls) == 2  # known
    AdapterFits(replace(base, digest="0" * 64), cache).fit(adapter)
    assert len(calls) == 4
    for name in ("_code_digest", "installed"):
        with monkeypatch.context() as changed:
            changed.setattr(adapter_fits, name, lambda *args: "changed")
            del calls[:]
            assert AdapterFits(base, cache).fit(adapter) == fit
            assert calls == ["empty_body", "plan_groups"]


def test_the_head_of_a_base_is_checked_once(tmp_path, calls):
    folder = tiny_causal.save_causal_base(tmp_path / "base")
    tasks = {"replies": tiny_causal.writing_task(tmp_path / "replies.jsonl")}
    plan = library_plan.plan_of(folder, tmp_path)
    assert "require_language_head" not in calls
    with_replies = plan.config.model_validate(plan.config.model_dump(mode="json") | {"tasks": tasks})
    make_plan(with_replies)
    make_plan(with_replies)
    assert calls.count("require_language_head") == 1
