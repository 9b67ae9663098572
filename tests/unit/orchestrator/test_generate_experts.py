"""Import and probing of experts that generate text, without the registry."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_causal
import torch
from rich.console import Console

from orchestrator.config.store_address import StoreAddress
from orchestrator.experts import exporting_library
from orchestrator.experts.importing import ExpertDescription, _describe, _load, _save
from orchestrator.experts.probing import ProbeBank, probe_inputs
from ttmoe.adapter import AdapterSpec
from ttmoe.encoding import Completion
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert, read_manifest, save_expert
from ttmoe.interchange import export_lora, import_lora
from workers.base.base_sources import resolve_base


@pytest.fixture
def probes(tmp_path):
    folder = tiny_causal.save_causal_base(tmp_path / "base")
    return ProbeBank.open(resolve_base(folder=str(folder), cache=tmp_path / "cache", dtype="float32", max_length=32))


@pytest.fixture
def folders(probes, tmp_path):
    """The same expert as ttmoe's own files, and as a PEFT adapter without head and manifest."""
    expert = probes.bank.add("one", AdapterSpec(method="lora", rank=4), 0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for core in expert.parameters():
            core.normal_(std=0.2, generator=torch.Generator().manual_seed(2))
    save_expert(expert.requires_grad_(False), tmp_path / "own", task="one", kind="generate", labels=(), metrics={},
                base=probes.base.record(), spec_hash="", answer_tokens=5)  # fmt: skip
    export_lora(probes.bank, "one", tmp_path / "peft", task_type="CAUSAL_LM")
    (tmp_path / "peft" / "head.safetensors").unlink()
    probes.bank.remove("one")
    return {"own": tmp_path / "own", "peft": tmp_path / "peft"}


def test_a_generating_expert_is_imported_from_both_formats(probes, folders, tmp_path):
    manifest, found = read_manifest(folders["own"]), []
    for form, kind, known in (("own", None, manifest), ("peft", "generate", None)):
        description = _describe(form, None, kind, known, folders[form])
        assert description == ExpertDescription(form, "generate", ())
        _load(probes, folders[form], description)
        saved = _save(probes, description, known, tmp_path / f"saved-{form}")
        assert (saved.kind, saved.labels, saved.answer_tokens) == ("generate", (), 5 if known else 0)
        probes.bank.remove("reloaded copy")
        found.append(torch.cat(probes.scores(form)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert all(isinstance(probe, Completion) for probe in probe_inputs("generate"))
    assert len(found[0]) > len(probe_inputs("generate"))
    both = probes._mixed_scores(["own", "peft"])
    torch.testing.assert_close(torch.cat(both["own"]), found[0], rtol=1e-4, atol=1e-4)


def test_a_generating_expert_has_no_labels(probes, folders):
    manifest = read_manifest(folders["own"])
    for labels, kind in (("a,b", None), (None, "text"), ("a,b", "generate")):
        with pytest.raises(InputError, match="has no labels"):
            _describe("one", labels, kind, manifest, folders["own"])
    with pytest.raises(InputError, match="has no labels"):
        _describe("one", "a,b", "generate", None, folders["peft"])
    with pytest.raises(InputError, match="does not contain the names of the labels"):
        _describe("one", None, None, None, folders["peft"])


def test_a_head_is_not_dropped_silently(probes, tmp_path):
    expert = probes.bank.add("two", AdapterSpec(), 2, torch.Generator().manual_seed(1))
    save_expert(expert, tmp_path / "two", task="two", kind="classify", labels=("a", "b"), metrics={},
                base=probes.base.record(), spec_hash="")  # fmt: skip
    assert json.loads(Path(tmp_path / "two" / "expert.json").read_text())["answer_tokens"] == 0
    manifest = read_manifest(tmp_path / "two")
    with pytest.raises(InputError, match="has labels and generates no text"):
        _describe("two", None, "generate", manifest, tmp_path / "two")
    export_lora(probes.bank, "two", tmp_path / "lora")
    with pytest.raises(InputError, match="the head has 2 outputs, for 0 labels"):
        _load(probes, tmp_path / "lora", _describe("three", None, "generate", None, tmp_path / "lora"))


class OneLibrary:
    """A registry of experts in folders, of which some write."""

    def __init__(self, folders):
        self.folders = folders

    def experts(self, library, every=False):
        return [SimpleNamespace(task=task, version=2, aliases=("champion",)) for task in self.folders]

    def read_file(self, version, name):
        return (self.folders[version.task] / name).read_bytes()

    def read_json(self, version, name):
        return json.loads(self.read_file(version, name))

    def fetch(self, version):
        return self.folders[version.task]

    def routers(self, library):
        return [SimpleNamespace(name="lib.router", version=number, aliases=()) for number in (1, 3)]


@pytest.fixture
def library(probes, folders, tmp_path, monkeypatch):
    """A library of one expert that writes and one that chooses a class."""
    probes.bank.add("which", AdapterSpec(rank=2), 2, torch.Generator().manual_seed(3)).requires_grad_(False)
    save_expert(probes.bank.expert("which"), tmp_path / "which", task="which", kind="text", labels=("a", "b"),
                metrics={}, base=probes.base.record(), spec_hash="")  # fmt: skip
    probes.bank.remove("which")
    experts = {"one": folders["own"], "which": tmp_path / "which"}
    monkeypatch.setattr(exporting_library, "open_library", lambda store, name: (OneLibrary(experts), "lib"))
    monkeypatch.setattr(exporting_library, "base_of_version", lambda registry, version: probes.base)
    return experts


def export(folder, *, form="peft", force=False):
    console = Console(record=True, width=200)
    exporting_library.export_library(StoreAddress(Path(), "", ""), None, folder, form, force, console)
    return console.export_text()


def test_all_writing_experts_are_exported_for_one_server(library, probes, tmp_path):
    out = tmp_path / "out"
    said = export(out)
    assert "left out, for they have a head for classes or options: which" in said
    assert sorted(path.name for path in out.iterdir()) == ["experts.json", "one", "serve.sh"]
    table = json.loads((out / "experts.json").read_text())
    assert table["experts"] == [{"task": "one", "adapter": "one", "version": 2, "rank": 8, "answer_tokens": 5}]
    assert (table["router"], table["left_out"], table["base"]) == ("models:/lib.router/3", ["which"],
                                                                  probes.base.record())  # fmt: skip
    command = (out / "serve.sh").read_text().splitlines()[-1]
    assert command.startswith(f"exec vllm serve {probes.base.folder} --enable-lora")
    assert "--max-lora-rank 8 --lora-modules one=one" in command
    load_expert(probes.bank, library["one"], probes.base.digest)
    probes.kinds["one"] = "generate"
    before = probes.scores("one")
    import_lora(probes.bank, out / "one", "back", base_digest=probes.base.digest)
    probes.kinds["back"] = "generate"
    torch.testing.assert_close(torch.cat(probes.scores("back")), torch.cat(before), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported_together_is_refused(library, tmp_path):
    with pytest.raises(InputError, match="exported as peft, not as 'ttmoe'"):
        export(tmp_path / "out", form="ttmoe")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(InputError, match="not an empty folder"):
        export(tmp_path / "full")
    export(tmp_path / "full", force=True)
    assert (tmp_path / "full" / "mine.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the files cannot be written"):
        export(tmp_path / "file" / "inside")
    del library["one"]
    with pytest.raises(InputError, match="no expert writes text: which have a head"):
        export(tmp_path / "out")
