"""Experts that write, brought in from elsewhere and probed: what the commands do but for the registry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_causal
import torch

from orchestrator.experts.importing import ExpertDescription, _load, _meaning, _save
from orchestrator.experts.probing import ProbeBank, probe_inputs
from ttmoe.adapter import AdapterSpec
from ttmoe.encoding import Completion
from ttmoe.errors import InputError
from ttmoe.expert_files import read_manifest, save_expert
from ttmoe.interchange import export_lora
from workers.base.base_sources import resolve_base


@pytest.fixture
def bench(tmp_path):
    folder = tiny_causal.save_causal_base(tmp_path / "base")
    return ProbeBank.open(resolve_base(folder=str(folder), cache=tmp_path / "cache", dtype="float32", max_length=32))


@pytest.fixture
def folders(bench, tmp_path):
    """The same expert as ttmoe's own files, and as a PEFT adapter without a head or a manifest."""
    expert = bench.bank.add("one", AdapterSpec(method="lora", rank=4), 0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for core in expert.parameters():
            core.normal_(std=0.2, generator=torch.Generator().manual_seed(2))
    save_expert(expert.requires_grad_(False), tmp_path / "own", task="one", kind="generate", labels=(), metrics={},
                base=bench.base.identity(), spec_hash="", answer_tokens=5)  # fmt: skip
    export_lora(bench.bank, "one", tmp_path / "peft", task_type="CAUSAL_LM")
    (tmp_path / "peft" / "head.safetensors").unlink()
    bench.bank.remove("one")
    return {"own": tmp_path / "own", "peft": tmp_path / "peft"}


def test_an_expert_that_writes_joins_from_both_forms(bench, folders, tmp_path):
    manifest, found = read_manifest(folders["own"]), []
    for form, kind, known in (("own", None, manifest), ("peft", "generate", None)):
        meaning = _meaning(form, None, kind, known, folders[form])
        assert meaning == ExpertDescription(form, "generate", ())
        _load(bench, folders[form], meaning)
        saved = _save(bench, meaning, known, tmp_path / f"saved-{form}")
        assert (saved.kind, saved.labels, saved.answer_tokens) == ("generate", (), 5 if known else 0)
        bench.bank.remove("reloaded copy")
        found.append(torch.cat(bench.scores(form)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert all(isinstance(probe, Completion) for probe in probe_inputs("generate"))
    assert len(found[0]) > len(probe_inputs("generate"))
    both = bench._mixed(["own", "peft"])
    torch.testing.assert_close(torch.cat(both["own"]), found[0], rtol=1e-4, atol=1e-4)


def test_labels_mean_nothing_to_it(bench, folders):
    manifest = read_manifest(folders["own"])
    for labels, kind in (("a,b", None), (None, "text"), ("a,b", "generate")):
        with pytest.raises(InputError, match="no labels"):
            _meaning("one", labels, kind, manifest, folders["own"])
    with pytest.raises(InputError, match="no labels"):
        _meaning("one", "a,b", "generate", None, folders["peft"])
    with pytest.raises(InputError, match="does not say what its labels are"):
        _meaning("one", None, None, None, folders["peft"])


def test_a_head_is_not_dropped_in_silence(bench, tmp_path):
    expert = bench.bank.add("two", AdapterSpec(), 2, torch.Generator().manual_seed(1))
    save_expert(expert, tmp_path / "two", task="two", kind="classify", labels=("a", "b"), metrics={},
                base=bench.base.identity(), spec_hash="")  # fmt: skip
    assert json.loads(Path(tmp_path / "two" / "expert.json").read_text())["answer_tokens"] == 0
    manifest = read_manifest(tmp_path / "two")
    with pytest.raises(InputError, match="it has labels, and writes no text"):
        _meaning("two", None, "generate", manifest, tmp_path / "two")
    export_lora(bench.bank, "two", tmp_path / "lora")
    with pytest.raises(InputError, match="the head has 2 outputs, for 0 labels"):
        _load(bench, tmp_path / "lora", _meaning("three", None, "generate", None, tmp_path / "lora"))
