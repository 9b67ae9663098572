"""``ttmoe experts`` on a small library in a real store: the output of each command and its effects."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import cells, open_registry, succeeded, ttmoe
from test_run import CONFIG, write_library
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from ttmoe.adapter import AdapterSpec, count_lora_parameters
from ttmoe.bank import Bank
from ttmoe.base import load_body
from ttmoe.expert_files import EXPERT_MANIFEST, EXPERT_WEIGHTS, read_manifest, save_expert
from ttmoe.features import FeatureSpec
from ttmoe.interchange import export_lora, import_lora
from ttmoe.router import Router, save_router

pytestmark = pytest.mark.integration

KINDS = {"animals": ("pair", ("cat", "dog")), "colours": ("text", ("red", "green", "blue")), "which": ("choice", ())}
SPECS = {"animals": AdapterSpec(method="lora", rank=3, targets=("k", "o")), "colours": AdapterSpec(rank=2, alpha=1.0),
         "which": AdapterSpec(rank=3, targets=("v",), first_layer=1)}  # fmt: skip
HASHES = {"animals": "aa11", "colours": "bb22", "which": "cc33"}


def randomize(expert: Any, seed: int) -> Any:
    """Set random weights in place of trained ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return expert


def make(base: Any, task: str, folder: Path, spec_hash: str, seed: int) -> dict[str, Any]:
    """Write an expert's files; return the tags that stage 1 would register."""
    kind, labels = KINDS[task]
    bank = Bank(load_body(base), base.pooling)
    expert = randomize(bank.add(task, SPECS[task], len(labels) or 1, torch.Generator()), seed)
    saved = save_expert(expert, folder, task=task, kind=kind, labels=labels, base=base.record(), spec_hash=spec_hash,
                        metrics={"test.accuracy": 0.5 + seed / 10})  # fmt: skip
    groups = expert.adapter.groups
    return {
        "base": f"folder:{base.id}", "base_revision": "", "base_digest": base.digest,
        "method": SPECS[task].method, "rank": SPECS[task].rank, "parameters": saved.parameters,
        "shape": "; ".join(f"{group.role}={group.method}" for group in groups),
        "lora16_parameters": count_lora_parameters(groups), "data_fingerprint": "f" * 12,
        "weights_digest": saved.weights_digest,
    }  # fmt: skip


@dataclass(frozen=True)
class Made:
    """Files that every test registers: an empty store, the folders of four experts and of a router."""

    folder: Path
    tags: dict[str, dict[str, Any]]
    base: Any


@pytest.fixture(scope="module")
def made(base, fresh_store, tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(fresh_store, folder)
    tags = {task: make(base, task, folder / task, HASHES[task], i) for i, task in enumerate(KINDS, 1)}
    tags["newer"] = make(base, "colours", folder / "newer", "dd44", 9)
    for task in KINDS:
        shutil.copytree(folder / task, folder / "router" / "experts" / task)
    features = FeatureSpec((0, 1))
    router = Router(tuple(KINDS), 64 * len(features.indexes(2)) * len(features.poolings), features)
    save_router(router, folder / "router", base.record(), HASHES, {})
    return Made(folder, tags, base)


class Home:
    """A library in a folder, and methods that run commands on it."""

    def __init__(self, root: Path, made: Made) -> None:
        self.root, self.made = root, made
        shutil.copyfile(made.folder / "mlflow.db", root / "mlflow.db")
        self.parent = self.registry.start_run("lib", "run", {}, "a: 1\n", {})
        for task in KINDS:
            self.register(task, promote=True)
        registry, folder = self.registry, Path(made.base.folder)
        run = registry.expert_run("lib", self.parent, "router", "ee55", {})
        metrics = {"test.routing_accuracy": 0.90002}
        registry.register_router(
            "lib", "ee55", made.folder / "router", HASHES, run, {}, base_folder=folder, metrics=metrics
        )
        self.registry.finish_run(run, "FINISHED")
        self.registry.finish_run(self.parent, "FINISHED")

    @property
    def registry(self) -> Any:
        from orchestrator.registry import Registry

        return Registry.open(f"sqlite:///{self.root}/mlflow.db", self.root / "mlartifacts")

    def register(self, task: str, *, files: str | None = None, hash_: str | None = None, **more: Any) -> Any:
        """Register an expert as stage 1 does, with its work folder and result."""
        files, hash_ = files or task, hash_ or HASHES[task]
        work = self.root / "lib" / "experts" / f"{task}-{hash_}"
        shutil.copytree(self.made.folder / files, work)
        (work / "result.json").write_text("{}")
        registry, tags = self.registry, self.made.tags[files]
        run = registry.expert_run("lib", self.parent, task, hash_, {})
        metrics = {**read_manifest(work).metrics, "seconds.job": 1.23456}
        spec = {"spec": json.dumps({"recipe": 1, "train": {"steps": 3, "lr": 1e-6}})}
        version = registry.register_expert("lib", task, hash_, work, run, tags | spec, metrics=metrics, **more)
        registry.finish_run(run, "FINISHED")
        return version

    def files(self, task: str) -> Path:
        """Folder of the registered files of the current version."""
        return self.registry.fetch(next(each for each in self.registry.experts("lib") if each.task == task))

    def versions(self) -> list[tuple[str, int, tuple[str, ...]]]:
        return [(each.task, each.version, each.aliases) for each in self.registry.experts("lib", every=True)]

    def runs(self) -> dict[str, Any]:
        """Active runs by task."""
        experiment = self.registry.experiment("lib").experiment_id
        runs = self.registry.client.search_runs([experiment], "tags.`ttmoe.kind` = 'expert'")
        return {run.data.tags["ttmoe.task"]: run for run in runs}

    def do(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["experts", *arguments, "--root", str(self.root)], env={"COLUMNS": "200"})

    def done(self, *arguments: str) -> str:
        result = self.do(*arguments)
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
        return result.stdout

    def refused(self, *arguments: str, code: int = 2) -> str:
        result = self.do(*arguments)
        assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
        return " ".join(result.stderr.split())


@pytest.fixture
def home(made, tmp_path, monkeypatch) -> Home:
    monkeypatch.delenv("TTMOE_BASE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs").mkdir()
    return Home(tmp_path / "runs", made)


class TestLs:
    def test_one_line_for_each_expert_and_the_router(self, home):
        out = home.done("ls")
        assert "Library lib" in out
        assert cells(out, "colours")[:4] == ["colours", "1", "candidate champion", "0.700"]
        assert cells(out, "colours")[-2:] == ["trained", "yes"]
        assert "router v1: routing accuracy 0.900" in out
        assert "STALE" not in out

    def test_an_expert_is_one_line_in_a_pipe(self, home):
        home.register("colours", files="newer", hash_="dd44")
        result = CliRunner().invoke(app, ["experts", "ls", "--root", str(home.root)], env={"COLUMNS": "40"})
        (row,) = [line for line in result.stdout.splitlines() if "colours" in line]
        assert row.split()[:2] == ["colours", "1"]
        assert row.split()[-2:] == ["trained", "yes"]

    def test_all_versions_and_a_stale_router(self, home):
        home.register("colours", files="newer", hash_="dd44")
        assert cells(home.done("ls"), "colours")[1] == "1"  # the champion
        out = home.done("ls", "--all")
        rows = [line.split()[:3] for line in out.splitlines() if line.strip().startswith("colours")]
        assert [row[1] for row in rows] == ["1", "2"]
        home.done("promote", "colours")
        assert "STALE: it uses another version of colours" in home.done("ls")

    def test_json_has_the_same_content(self, home):
        home.register("colours", files="newer", hash_="dd44", promote=True)
        output = json.loads(home.done("ls", "--json"))
        assert [(each["expert"], each["version"], each["routed"]) for each in output["experts"]] == [
            ("animals", 1, True), ("colours", 2, False), ("which", 1, True)]  # fmt: skip
        assert output["router"] | {"spec_hash": ""} == {"version": 1, "routing_accuracy": 0.9, "spec_hash": "",
                                 "stale": True, "other": ["colours"], "unknown": [], "gone": []}  # fmt: skip

    def test_the_lock_as_a_tag_comes_before_the_file(self, home):
        registry = home.registry
        lock = json.dumps({**HASHES, "colours": "dd44"})
        registry.client.set_model_version_tag("lib.router", "1", "ttmoe.lock", lock)
        assert json.loads(home.done("ls", "--json"))["router"]["other"] == ["colours"]
        registry.client.set_model_version_tag("lib.router", "1", "ttmoe.lock", lock[:20])  # too long, and cut
        assert json.loads(home.done("ls", "--json"))["router"]["other"] == []


class TestShow:
    def test_all_details(self, home):
        output = json.loads(home.done("show", "colours", "--json"))
        version = home.registry.find_expert("lib", "colours", "bb22")
        assert output["expert"] == "colours v1"
        assert output["aliases"] == ["candidate", "champion"]
        assert output["spec_hash"] == "bb22"
        assert output["metrics"] == {"test.accuracy": 0.7, "seconds.job": 1.2}
        assert output["run"] == version.run_id
        assert output["files"] == version.uri
        assert output["routers"] == ["v1 candidate champion"]
        assert output["spec"] == {"recipe": 1, "train": {"steps": 3, "lr": 1e-6}}
        tags = home.made.tags["colours"]
        assert output["share_of_lora16"] == pytest.approx(tags["parameters"] / tags["lora16_parameters"], abs=1e-4)
        assert all(output[key] == tags[key] for key in ("weights_digest", "data_fingerprint", "shape", "base_digest"))
        out = home.done("show", "colours")
        assert tags["weights_digest"] in out
        assert '"steps": 3' in out

    def test_versions_by_number_and_alias(self, home):
        home.register("colours", files="newer", hash_="dd44")
        for arguments, number in (
            (("colours",), 1), (("colours@candidate",), 2), (("colours@v2",), 2), (("colours@2",), 2),
            (("colours", "--version", "2"), 2), (("colours@champion",), 1),
        ):  # fmt: skip
            assert json.loads(home.done("show", *arguments, "--json"))["expert"] == f"colours v{number}"
        assert json.loads(home.done("show", "colours@v2", "--json"))["routers"] == []

    def test_a_missing_expert_or_version_is_an_error(self, home):
        assert "select one of them with --version: v1 candidate champion" in home.refused("show", "colours@v7")
        assert "registered experts: animals, colours, which" in home.refused("show", "flavours")


class TestVerify:
    def test_experts_alone_and_in_one_batch(self, home):
        assert home.done("verify").splitlines() == ["animals v1: ok", "colours v1: ok", "which v1: ok"]
        home.register("colours", files="newer", hash_="dd44")
        assert home.done("verify", "colours", "--all").splitlines() == ["colours v1: ok", "colours v2: ok"]
        assert home.done("verify", "colours@v2").splitlines() == ["colours v2: ok"]

    def test_altered_weights(self, home):
        path = home.files("colours") / EXPERT_WEIGHTS
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        result = home.do("verify")
        assert result.exit_code == 1
        lines = result.stdout.splitlines()
        assert lines[0] == "animals v1: ok"
        assert lines[1].startswith("colours v1: FAILED: the weights were altered")
        assert lines[2] == "which v1: ok"
        assert "1 of 3 experts failed: colours v1" in result.stderr
        assert "ttmoe experts rm" in result.stderr

    @pytest.mark.parametrize("what", ["swapped", "missing", "manifest", "spec_hash", "base"])
    def test_files_that_differ_from_the_registry(self, home, what):
        place = home.files("colours")
        if what == "swapped":  # a whole expert, but another one
            shutil.copytree(home.made.folder / "newer", place, dirs_exist_ok=True)
            home.registry.client.set_model_version_tag("lib.colours", "1", "ttmoe.spec_hash", "dd44")
            message = "its weights digest is"
        elif what == "missing":
            shutil.rmtree(place)
            message = "its files are missing"
        elif what == "manifest":
            (place / EXPERT_MANIFEST).unlink()
            message = "cannot read the expert manifest"
        else:
            manifest = json.loads((place / EXPERT_MANIFEST).read_text())
            if what == "base":
                manifest["base"]["digest"] = "0" * 64
                message = "was trained on base"
            else:
                manifest["spec_hash"] = "9999"
                message = "its spec hash is 9999, registered is bb22"
            (place / EXPERT_MANIFEST).write_text(json.dumps(manifest))
        result = home.do("verify")
        assert result.exit_code == 1
        assert message in result.stdout.splitlines()[1]
        assert "1 of 3 experts failed: colours v1" in result.stderr

    def test_an_expert_without_files_does_not_hide_the_others(self, home):
        """The base of all is read from the files of one of them."""
        shutil.rmtree(home.files("animals"))
        lines = home.do("verify").stdout.splitlines()
        assert "animals v1: FAILED: its files are missing" in lines[0]
        assert lines[1:] == ["colours v1: ok", "which v1: ok"]

    def test_scores_that_change_in_a_batch_with_other_experts(self, home, monkeypatch):
        from orchestrator.experts import probing

        honest = probing.score

        def leaky(bank, items, names, pad_id):
            scores = honest(bank, items, names, pad_id)
            if isinstance(names, str):
                return scores
            return [row + (1e-3 if name.startswith("which") else 0) for row, name in zip(scores, names, strict=True)]

        monkeypatch.setattr(probing, "score", leaky)
        result = home.do("verify")
        assert result.exit_code == 1
        assert "which v1: FAILED: in a batch with other experts its scores differ" in result.stdout
        assert "animals v1: ok" in result.stdout
        assert home.do("verify", "which").exit_code == 1  # a single expert is put in a batch with another one

    def test_a_missing_base(self, home, monkeypatch, tmp_path):
        monkeypatch.setenv("TTMOE_BASE", str(tmp_path / "gone"))
        result = home.do("verify")
        assert result.exit_code == 1
        assert "3 of 3 experts failed" in result.stderr
        assert "base" in result.stdout


def test_promote_reports_a_stale_router(home):
    home.register("colours", files="newer", hash_="dd44")
    output = home.done("promote", "colours", "--version", "2")
    assert "colours v2 is the champion" in output
    assert "the router is stale: v1 was trained with another version of it" in output
    assert ("colours", 2, ("candidate", "champion")) in home.versions()
    assert "stale" not in home.done("promote", "colours@v1")
    assert ("colours", 1, ("champion",)) in home.versions()


class TestRm:
    def test_a_version_that_the_router_uses_needs_force(self, home):
        assert "router v1 uses colours v1" in home.refused("rm", "colours", "--yes")
        assert ("colours", 1, ("candidate", "champion")) in home.versions()
        assert "removed colours v1" in home.done("rm", "colours", "--yes", "--force")
        assert [task for task, *_ in home.versions()] == ["animals", "which"]

    def test_the_run_and_the_work_folder_are_removed_too(self, home):
        run = home.runs()["colours"].info.run_id
        home.done("rm", "colours", "--yes", "--force")
        registry = home.registry
        assert registry.find_expert("lib", "colours", "bb22") is None
        assert not (home.root / "lib" / "experts" / "colours-bb22").exists()
        assert (home.root / "lib" / "experts" / "animals-aa11" / "result.json").is_file()
        assert set(home.runs()) == {"animals", "which", "router"}
        assert registry.client.get_run(run).info.lifecycle_stage == "deleted"  # and can be restored
        assert registry.expert_run("lib", home.parent, "colours", "bb22", {}) != run
        assert "colours" not in [each.name for each in registry.client.search_registered_models()]
        assert "there is no expert 'colours'" in home.refused("rm", "colours", "--yes")

    def test_removing_one_version_keeps_the_others(self, home):
        home.register("colours", files="newer", hash_="dd44")
        assert "removed colours v2" in home.done("rm", "colours", "--version", "2", "--yes")  # the router's is v1
        assert ("colours", 1, ("champion",)) in home.versions()
        assert (home.root / "lib" / "experts" / "colours-bb22").is_dir()
        assert home.done("verify", "colours").strip() == "colours v1: ok"

    def test_a_run_is_kept_while_a_version_of_it_exists(self, home):
        registry = home.registry
        run = home.runs()["which"].info.run_id
        found = registry.find_expert("lib", "which", "cc33")
        own = {"library": "lib", "kind": "expert", "task": "which", "spec_hash": "ff66"}
        tags = {f"ttmoe.{key}": value for key, value in own.items()}
        registry.client.create_model_version("lib.which", found.uri, run, tags=tags)
        home.done("rm", "which@v2", "--yes")
        assert home.runs()["which"].info.run_id == run
        home.done("rm", "which", "--yes", "--force")
        assert "which" not in home.runs()

    def test_it_asks_for_confirmation_only_on_a_terminal(self, home, monkeypatch):
        before = home.versions()
        assert "add --yes" in home.refused("rm", "colours", "--force")
        terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr("orchestrator.experts.removing.sys", terminal)
        asked = []

        def answer(text):
            return lambda question, **more: asked.append(question) or text

        monkeypatch.setattr("orchestrator.experts.removing.Confirm.ask", answer(False))
        assert "nothing was removed" in home.done("rm", "colours", "--force")
        assert home.versions() == before
        monkeypatch.setattr("orchestrator.experts.removing.Confirm.ask", answer(True))
        home.done("rm", "colours", "--force")
        assert asked == ["Remove colours v1 from library lib?"] * 2
        assert len(home.versions()) == len(before) - 1

    def test_it_fails_while_a_run_is_active(self, home):
        with home.registry.hold_lease("lib", "ttmoe run", print):
            assert "another run" in home.refused("rm", "colours", "--yes", "--force")
        assert ("colours", 1, ("candidate", "champion")) in home.versions()

    def test_a_router_that_is_registered_before_it_holds_the_library_is_seen(self, home, monkeypatch):
        """As by a run in the time until the user confirmed."""
        import orchestrator.experts.removing as module

        original, seen = module.read_router_state, []

        def none_at_first(*arguments):
            seen.append(1)
            return original(*arguments) if len(seen) > 1 else None

        monkeypatch.setattr(module, "read_router_state", none_at_first)
        assert "router v1 uses colours v1" in home.refused("rm", "colours", "--yes")
        assert ("colours", 1, ("candidate", "champion")) in home.versions()
        assert (home.root / "lib" / "experts" / "colours-bb22").exists()

    def test_the_router_is_not_an_expert(self, home):
        assert "there is no expert 'router'" in home.refused("rm", "router", "--yes", "--force")
        assert home.registry.router("lib") is not None


def scores(base: Any, load: Any, *, pair: bool = False) -> Any:
    """Return the scores of an expert; ``load(bank)`` loads it and returns its name."""
    from orchestrator.experts.probing import ProbeBank

    probes = ProbeBank.open(base)
    name = load(probes.bank)
    probes.kinds[name] = "pair" if pair else "text"
    return torch.stack(probes.scores(name))


def load_from(folder: Path, base: Any) -> Any:
    from ttmoe.expert_files import load_expert

    return lambda bank: load_expert(bank, folder, base.digest, name="it") and "it"


class TestExport:
    def test_its_own_format(self, home, tmp_path):
        home.done("export", "colours", str(tmp_path / "out"), "--format", "ttmoe")
        assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [EXPERT_MANIFEST, EXPERT_WEIGHTS]
        for name in (EXPERT_MANIFEST, EXPERT_WEIGHTS):
            assert (tmp_path / "out" / name).read_bytes() == (home.made.folder / "colours" / name).read_bytes()

    def test_a_lora_adapter_has_the_scores_of_the_expert(self, home, tmp_path, base):
        home.done("export", "colours", str(tmp_path / "out"))
        mine = scores(base, load_from(home.made.folder / "colours", base))

        def load(bank):
            import_lora(bank, tmp_path / "out", "it", base_digest=base.digest)
            return "it"

        assert torch.allclose(scores(base, load), mine, atol=1e-5)
        assert mine.std() > 0.01

    def test_a_folder_that_is_not_empty(self, home, tmp_path):
        out = tmp_path / "out"
        home.done("export", "colours", str(out), "--format", "ttmoe")
        (out / "mine.txt").write_text("kept")
        assert "not empty" in home.refused("export", "animals", str(out))
        assert read_manifest(out).task == "colours"
        home.done("export", "animals", str(out), "--force")
        assert read_manifest(out).task == "animals"
        assert not (out / EXPERT_WEIGHTS).exists()  # two formats in one folder would be ambiguous
        assert (out / "mine.txt").read_text() == "kept"
        assert "there is no format 'onnx'" in home.refused("export", "animals", str(out), "--format", "onnx")
        assert "it is a file" in home.refused("export", "animals", str(out / "mine.txt"))

    def test_an_export_that_fails_leaves_the_earlier_one(self, home, tmp_path, monkeypatch):
        out = tmp_path / "out"
        home.done("export", "colours", str(out))
        before = {path.name: path.read_bytes() for path in out.iterdir()}

        def full(source, target):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("orchestrator.experts.exporting.shutil.copyfile", full)
        output = home.refused("export", "animals", str(out), "--format", "ttmoe", "--force")
        assert "the files cannot be written (No space left on device)" in output
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


class TestImport:
    @pytest.mark.parametrize("form", ["ttmoe", "peft"])
    def test_an_exported_expert_can_be_imported(self, home, tmp_path, base, form):
        home.done("export", "animals", str(tmp_path / "out"), "--format", form)
        output = home.done("import", str(tmp_path / "out"), "--task", "pets")
        assert "as pets v1 in library lib" in output
        assert "no router uses it yet" in output
        assert home.done("verify", "pets").strip() == "pets v1: ok"
        (version,) = [each for each in home.registry.experts("lib") if each.task == "pets"]
        assert version.aliases == ("candidate",)
        assert version.metrics == {"test.accuracy": 0.6}
        assert version.tags["origin"] == "imported"
        own = home.registry.find_expert("lib", "animals", "aa11").tags
        assert {key: version.tags[key] for key in ("base", "base_digest", "method", "lora16_parameters")} == {
            key: own[key] for key in ("base", "base_digest", "method", "lora16_parameters")}  # fmt: skip
        manifest = read_manifest(home.files("pets"))
        assert (manifest.kind, manifest.labels, manifest.spec_hash) == ("pair", ("cat", "dog"), version.spec_hash)
        run = home.runs()["pets"]
        assert (run.info.status, run.info.run_id) == ("FINISHED", version.run_id)
        alike = [scores(base, load_from(home.files(task), base), pair=True) for task in ("animals", "pets")]
        assert torch.allclose(*alike, atol=1e-5)
        listed = cells(home.done("ls"), "pets")
        assert listed[-2:] == ["imported", "no"]

    def test_importing_a_folder_again_gives_the_same_version(self, home):
        folder = str(home.made.folder / "newer")
        for _ in range(2):
            assert "colours v2" in home.done("import", folder, "--task", "colours")
        assert [each for each in home.versions() if each[0] == "colours"] == [
            ("colours", 1, ("champion",)), ("colours", 2, ("candidate",))]  # fmt: skip
        found = home.registry.experts("lib", every=True)
        assert len({each.run_id for each in found}) == 4
        home.done("import", folder, "--task", "colours", "--labels", "a,b,c")  # other labels: another expert
        assert [each[1] for each in home.versions() if each[0] == "colours"] == [1, 2, 3]

    def test_a_foreign_lora_without_labels_or_head(self, home, tmp_path, base):
        bank = Bank(load_body(base), base.pooling)
        randomize(bank.add("x", AdapterSpec(method="lora", rank=2), 2, torch.Generator()), 3)
        out = tmp_path / "out"
        export_lora(bank, "x", out)
        assert "--labels a,b" in home.refused("import", str(out), "--task", "mood")
        assert "2 outputs, for 3 labels" in home.refused("import", str(out), "--task", "mood", "--labels", "a,b,c")
        assert "not a list of labels" in home.refused("import", str(out), "--task", "mood", "--labels", "a,a")
        home.done("import", str(out), "--task", "mood", "--labels", "sad, glad", "--kind", "pair")
        manifest = read_manifest(home.files("mood"))
        assert (manifest.kind, manifest.labels) == ("pair", ("sad", "glad"))
        (out / "head.safetensors").unlink()
        assert "came without a head" in home.done("import", str(out), "--task", "blank", "--labels", "a,b,c")
        assert home.done("verify", "mood", "blank").splitlines() == ["mood v1: ok", "blank v1: ok"]

    def test_a_failed_import_registers_nothing(self, home, tmp_path, base):
        before = home.versions(), set(home.runs())
        (tmp_path / "empty").mkdir()
        assert "contains no expert" in home.refused("import", str(tmp_path / "empty"), "--task", "x", "--labels", "a,b")
        other = replace(base, digest="0" * 64)
        tags = make(other, "colours", tmp_path / "foreign", "1234", 1)
        assert tags["base_digest"] == "0" * 64
        assert "was trained on base" in home.refused("import", str(tmp_path / "foreign"), "--task", "x")
        shutil.copytree(home.made.folder / "newer", tmp_path / "bad")
        (tmp_path / "bad" / EXPERT_WEIGHTS).write_bytes(b"half")
        assert "altered or truncated" in home.refused("import", str(tmp_path / "bad"), "--task", "x")
        folder = str(home.made.folder / "newer")
        for name in ("router", "a.b", "UP"):
            assert "is not a valid task name" in home.refused("import", folder, "--task", name)
        assert "no library 'other'" in home.refused("import", folder, "--task", "x", "--library", "other")
        which = str(home.made.folder / "which")
        assert "chooses among options" in home.refused("import", which, "--task", "x", "--kind", "text")
        home.done("import", which, "--task", "what")  # without --kind it is valid
        home.done("rm", "what", "--yes")
        assert (home.versions(), set(home.runs())) == before

    def test_scores_that_are_not_finite_register_nothing(self, home, monkeypatch):
        from orchestrator.experts import probing

        monkeypatch.setattr(probing, "score", lambda bank, items, *_: [torch.full((3,), torch.inf) for _ in items])
        assert "not finite" in home.refused("import", str(home.made.folder / "newer"), "--task", "x")
        assert len(home.versions()) == 3


@pytest.mark.thorough
def test_a_removed_expert_is_trained_again(base_folder, tmp_path):
    """Run, rm and run with the console script."""
    write_library(tmp_path, base_folder, CONFIG)
    succeeded(ttmoe(tmp_path, "run", "tiny.yaml", "--set", "train.steps=20"))
    registry = open_registry(tmp_path / "runs")
    (before,) = [each for each in registry.experts("tiny") if each.task == "animals"]
    refused = ttmoe(tmp_path, "experts", "rm", "animals", "--yes")
    assert (refused.code, "router v1 uses animals v1" in refused.err) == (2, True)
    succeeded(ttmoe(tmp_path, "experts", "rm", "animals", "--yes", "--force"))
    assert "STALE: experts without a champion: animals" in succeeded(ttmoe(tmp_path, "experts", "ls")).out
    done = succeeded(ttmoe(tmp_path, "run", "tiny.yaml", "--set", "train.steps=20"))
    assert "animals" in done.out
    (after,) = [each for each in registry.experts("tiny") if each.task == "animals"]
    assert after.spec_hash == before.spec_hash
    assert after.run_id != before.run_id  # it was trained in a new run
    assert len(registry.client.get_metric_history(after.run_id, "train.loss")) == 20
    # The router of this spec exists: it uses the expert again.
    listed = succeeded(ttmoe(tmp_path, "experts", "ls")).out
    assert cells(listed, "animals")[-2:] == ["trained", "yes"]
    assert "STALE" not in listed
    assert ": ok" in succeeded(ttmoe(tmp_path, "experts", "verify", "animals")).out
