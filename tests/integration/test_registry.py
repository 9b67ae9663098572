"""The registry on SQLite stores and a tracking server: idempotent at every crash point, with few queries."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import tiny

from orchestrator.config.store_address import find_store
from orchestrator.registry import uploads
from ttmoe.errors import InputError, WorkFailedError

pytestmark = pytest.mark.integration


class TookEffect(Exception):
    """Raised after a client call that succeeded, as a time-out of the response is."""


class FailsAfter:
    """An MlflowClient whose n-th write succeeds and then raises; with ``for_good``, all later calls raise too.

    Every method that does not start with a prefix in READS counts as a write, so that new methods are tested too.
    """

    READS = ("search_", "get_", "list_", "download_")

    def __init__(self, client, n, *, for_good=False):
        self.client, self.left, self.for_good, self.writes = client, n, for_good, []

    def __getattr__(self, name):
        return self.watched(name, getattr(self.client, name))

    def watched(self, name, call):
        if not callable(call):
            return call

        def wrapped(*args, **kwargs):
            if self.left <= 0 and self.for_good:  # a process that died makes no calls
                raise TookEffect(name)
            result = call(*args, **kwargs)
            if not name.startswith(self.READS):
                self.left -= 1
                self.writes.append(name)
                if self.left == 0:
                    self.fail(name)
            return result

        return wrapped

    @contextmanager
    def uploads(self):
        """Count uploads, which go to the artifact repository directly, among the writes within the context."""

        opened = uploads.get_artifact_repository

        class Repository:
            def __init__(repository, *args, **kwargs):
                repository.real = opened(*args, **kwargs)

            def __getattr__(repository, name):
                return self.watched(name, getattr(repository.real, name))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(uploads, "get_artifact_repository", Repository)
            yield

    def fail(self, name):
        raise TookEffect(name)


class Kills(FailsAfter):
    """Ends the process at once, as SIGKILL does."""

    def fail(self, name):
        os._exit(9)


class Counts(FailsAfter):
    """Counts calls by name."""

    def __init__(self, client):
        super().__init__(client, 0)
        self.calls = Counter()

    def __getattr__(self, name):
        self.calls[name] += 1
        return getattr(self.client, name)


@pytest.fixture
def registry(fresh_store, tmp_path):
    return open_copy(fresh_store, tmp_path)


def open_copy(fresh_store, folder):
    """Return an empty registry in ``folder``."""
    from orchestrator.registry import Registry

    folder.mkdir(exist_ok=True)
    (folder / "mlflow.db").write_bytes(fresh_store.read_bytes())
    return Registry.open(f"sqlite:///{folder}/mlflow.db", folder / "mlartifacts")


@pytest.fixture
def expert_folder(tmp_path):
    return tiny.write_expert_files(tmp_path / "made" / "expert", b"\0" * 100_000, task="trec")


def add_expert(registry, folder, task="trec", spec_hash="aa11", parent="none", **more):
    run_id = registry.expert_run("lib", parent, task, spec_hash, {"rank": 8})
    version = registry.register_expert("lib", task, spec_hash, folder, run_id, {"rank": 8}, **more)
    registry.finish_run(run_id, "FINISHED")
    return version


def drive(registry, made, parts=("expert", "router", "search")):
    """Make the registry operations of a driver in its order: close stale runs, then make what is missing."""
    watching = registry.client.uploads() if isinstance(registry.client, FailsAfter) else nullcontext()
    with watching:
        _drive(registry, made, parts)


def _drive(registry, made, parts):
    registry.close_stale("lib")
    existing = {
        "expert": registry.find_expert("lib", "trec", "aa11"),
        "router": registry.find_router("lib", "bb22"),
        "search": registry.search_artifacts("lib", "cc33"),
    }
    if missing := [part for part in parts if existing[part] is None]:
        parent = registry.start_run("lib", "run", {"version": "0.1"}, "a: 1\n", {"missing": missing})
        with registry.end_run_on_exit(parent):
            for part in missing:
                {"expert": drive_expert, "router": drive_router, "search": drive_search}[part](registry, made, parent)
    for version in (registry.find_expert("lib", "trec", "aa11"), registry.find_router("lib", "bb22")):
        if version is not None and "champion" not in version.aliases:
            registry.promote(version)


def drive_expert(registry, made, parent):
    folder = made / "expert"
    run_id = registry.expert_run("lib", parent, "trec", "aa11", {"rank": 8, "shape": "4x8"})
    registry.log_metrics(run_id, [("loss", 1 / (step + 1), step, 1000 + step) for step in range(5)])
    registry.log_file(run_id, folder / "expert.json")
    registry.register_expert("lib", "trec", "aa11", folder, run_id, {"rank": 8}, metrics={"accuracy": 0.95})
    registry.finish_run(run_id, "FINISHED")


def drive_router(registry, made, parent):
    run_id = registry.expert_run("lib", parent, "router", "bb22", {"epochs": 3})
    with registry.end_run_on_exit(run_id):
        registry.log_metrics(run_id, [("test.routing_accuracy", 0.9, 0, 0)])
        registry.register_router("lib", "bb22", made / "router", {"trec": "aa11"}, run_id, {"features": "1"})
    registry.tag_run(parent, {"report": "done"})


def drive_search(registry, made, parent):
    tags = {"spec_hash": "cc33", "task": "trec"}
    run_id = registry.start_run("lib", "search trec", tags, "trials: 2", {"space": {}}, search=True)
    with registry.end_run_on_exit(run_id):
        registry.log_file(run_id, made / "expert" / "expert.json")
        for spec_hash in ("dd44", "ee55"):
            child = registry.expert_run("lib", run_id, "trec", spec_hash, {"rank": 8}, search=True)
            registry.log_metrics(child, [("accuracy", 0.9, 0, 1000)])
            registry.finish_run(child, "FINISHED")


def snapshot(registry):
    """Return the content without ids, times, parent runs, and interrupted searches with their trials."""
    client, runs = registry.client, {run.info.run_id: run for run in all_runs(registry)}

    def artifacts(run_id, path=""):
        for entry in client.list_artifacts(run_id, path):
            yield from artifacts(run_id, entry.path) if entry.is_dir else [(entry.path, entry.file_size)]

    def shown(run):
        tags = {key: value for key, value in run.data.tags.items() if key != "ttmoe.run"}
        parent = runs.get(run.data.tags.get("ttmoe.run"))
        history = {
            key: sorted(
                (metric.step, metric.value, metric.timestamp)
                for metric in client.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
        }
        return {"status": run.info.status, "name": run.info.run_name, "tags": tags, "params": run.data.params,
                "metrics": history, "files": [name for name, _ in sorted(artifacts(run.info.run_id))],
                "parent": parent and parent.data.tags["ttmoe.kind"]}  # fmt: skip

    def is_repeated(run):
        kind = run.data.tags["ttmoe.kind"]
        search = runs.get(run.data.tags.get("ttmoe.run")) if kind == "trial" else run if kind == "search" else None
        return kind == "run" or (search is not None and search.info.status != "FINISHED")

    kept = [run for run in runs.values() if not is_repeated(run)]
    models = {model.name: {"tags": model.tags, "aliases": model.aliases} for model in client.search_registered_models()}
    versions = {
        (each.name, int(each.version)): {"tags": each.tags, "status": each.status, "description": each.description,
                                         "run": shown(runs[each.run_id])["tags"], "source": each.source.split("/")[-1]}
        for each in client.search_model_versions()
    }  # fmt: skip
    listed = sorted((shown(run) for run in kept), key=lambda each: (each["tags"]["ttmoe.kind"], json.dumps(each)))
    return {"models": models, "versions": versions, "runs": listed}


def all_runs(registry, status=None):
    ids = [each.experiment_id for each in registry.client.search_experiments()]
    return [run for run in registry.client.search_runs(ids) if status in (None, run.info.status)]


@pytest.fixture
def router_folder(tmp_path, expert_folder):
    folder = tmp_path / "made" / "router"
    inside = folder / "experts" / "trec"
    inside.mkdir(parents=True)
    for file in expert_folder.iterdir():
        (inside / file.name).write_bytes(file.read_bytes())
    digest = hashlib.sha256(b"\0" * 10).hexdigest()
    manifest = {"base": {"id": "tiny"}, "lock": {"trec": "aa11"}, "weights_digest": digest}
    (folder / "router.json").write_text(json.dumps(manifest))
    (folder / "router.safetensors").write_bytes(b"\0" * 10)
    return folder


def test_an_expert_is_registered_and_found(registry, expert_folder):
    version = add_expert(registry, expert_folder, metrics={"accuracy": 0.9534}, description="six classes")
    assert (version.name, version.version, version.aliases) == ("lib.trec", 1, ("candidate",))
    assert version.metrics == {"accuracy": 0.9534}
    assert version.tags["rank"] == "8"
    assert registry.find_expert("lib", "trec", "aa11") == version
    assert registry.find_expert("lib", "trec", "other") is None
    assert registry.find_expert("other", "trec", "aa11") is None
    raw = registry.client.get_model_version("lib.trec", "1")
    assert raw.tags["ttmoe.spec_hash"] == "aa11"
    assert raw.status == "READY"
    assert registry.client.get_registered_model("lib.trec").tags["ttmoe.kind"] == "expert"


def test_fetch_from_a_local_store_copies_nothing_and_reports_missing_files(registry, expert_folder, tmp_path):
    version = add_expert(registry, expert_folder)
    folder = registry.fetch(version)
    assert folder.is_relative_to(tmp_path / "mlartifacts" / "lib")
    assert (folder / "expert.safetensors").read_bytes() == (expert_folder / "expert.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"lib\.trec version 1.*missing"):
        registry.fetch(replace(version, uri=version.uri + "-elsewhere"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("expert.safetensors", b"stale"), ("expert.safetensors", None), ("expert.json", None), ("", None)],
    ids=["other weights", "no weights", "no manifest", "no folder"],
)
def test_an_expert_whose_files_are_missing_or_others_is_not_registered(registry, expert_folder, name, content):
    """A server and a shared cache, but a storage folder that the driver does not share with its workers."""
    digest = hashlib.sha256((expert_folder / "expert.safetensors").read_bytes()).hexdigest()
    if not name:
        shutil.rmtree(expert_folder)
    elif content is None:
        (expert_folder / name).unlink()
    else:
        (expert_folder / name).write_bytes(content)
    with pytest.raises(WorkFailedError, match=f"missing on this machine.*{name}") as caught:
        registry.register_expert("lib", "trec", "aa11", expert_folder, start(registry), {"weights_digest": digest})
    assert (caught.value.where, "storage.root" in caught.value.fix) == ("lib.trec", True)
    assert registry.experts("lib", every=True) == []


def start(registry):
    return registry.expert_run("lib", "none", "trec", "aa11", {})


@pytest.mark.parametrize("kept", [None, b"cut"])
def test_what_was_uploaded_is_read_back_before_a_version_is_made(registry, expert_folder, monkeypatch, kept):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    upload = LocalArtifactRepository.log_artifacts

    def lossy(repository, folder, path=None):
        if kept:
            upload(repository, folder, path)
            Path(repository.artifact_dir, path, "expert.safetensors").write_bytes(kept)

    monkeypatch.setattr(LocalArtifactRepository, "log_artifacts", lossy)
    with pytest.raises(WorkFailedError, match=r"did not keep what was uploaded: .*expert\.safetensors"):
        add_expert(registry, expert_folder)
    assert registry.experts("lib", every=True) == []
    monkeypatch.undo()
    assert add_expert(registry, expert_folder).version == 1


def test_a_version_whose_files_are_gone_is_replaced(registry, expert_folder, router_folder):
    old = add_expert(registry, expert_folder, promote=True)
    assert registry.has_files(old)
    registry.check_files(old)
    (registry.fetch(old) / "expert.safetensors").write_bytes(b"\0" * 99_999)
    assert not registry.has_files(old)
    (registry.fetch(old) / "expert.safetensors").unlink()
    assert not registry.has_files(old)
    with pytest.raises(InputError, match="its files are missing or damaged"):
        registry.check_files(old)
    new = add_expert(registry, expert_folder)
    assert (new.version, new.aliases, registry.has_files(new)) == (2, ("candidate",), True)
    assert registry.experts("lib", every=True) == [new]
    run = registry.expert_run("lib", "none", "router", "bb22", {})
    router = registry.register_router("lib", "bb22", router_folder, {"trec": "aa11"}, run, {})
    assert registry.has_files(router)
    for name in ("router.safetensors", "router.json", "lock.json", "MLmodel", "experts/trec/expert.safetensors"):
        path = registry.fetch(router) / name
        whole = path.read_bytes()
        path.write_bytes(whole[:9])
        assert not registry.has_files(router), name
        path.write_bytes(b"5")  # valid JSON
        assert not registry.has_files(router), name
        path.write_bytes(whole)
    assert registry.has_files(router)
    shutil.rmtree(registry.fetch(router))
    assert not registry.has_files(router)
    with pytest.raises(InputError, match="cannot be read"):
        registry.read_file(router, "router.json")


def test_a_storage_folder_that_was_moved_keeps_its_files(fresh_store, tmp_path, expert_folder):
    from orchestrator.registry import Registry

    version = add_expert(open_copy(fresh_store, tmp_path / "runs"), expert_folder)
    (tmp_path / "runs").rename(tmp_path / "moved")
    registry = Registry.open(f"sqlite:///{tmp_path}/moved/mlflow.db", tmp_path / "moved" / "mlartifacts")
    assert registry.has_files(version)
    assert registry.fetch(version).is_relative_to(tmp_path / "moved")
    assert json.loads(registry.read_file(version, "expert.json"))["task"] == "trec"


def test_a_spec_has_one_version_which_never_changes(registry, expert_folder):
    first = add_expert(registry, expert_folder)
    (expert_folder / "expert.json").write_text("retrained")
    again = add_expert(registry, expert_folder, promote=True)
    assert again.version == 1
    assert again.aliases == ("candidate", "champion")
    assert json.loads((registry.fetch(first) / "expert.json").read_text())["task"] == "trec"


def test_aliases_follow_the_spec_that_is_asked_for(registry, expert_folder):
    add_expert(registry, expert_folder, spec_hash="aa11", promote=True)
    second = add_expert(registry, expert_folder, spec_hash="cc33")
    assert second.version == 2
    assert [(v.version, v.aliases) for v in registry.experts("lib")] == [(1, ("champion",))]
    registry.promote(second)
    assert [v.version for v in registry.experts("lib")] == [2]
    back = add_expert(registry, expert_folder, spec_hash="aa11", promote=True)
    assert back.version == 1
    assert [v.version for v in registry.experts("lib")] == [1]
    assert [v.version for v in registry.experts("lib", every=True)] == [1, 2]


def test_the_run_of_a_spec_is_continued(registry):
    first = registry.start_run("lib", "run", {}, "a: 1\n", {})
    run_id = registry.expert_run("lib", first, "trec", "aa11", {"rank": 8})
    registry.finish_run(run_id, "FAILED")
    second = registry.start_run("lib", "run", {}, "a: 1\n", {})
    assert registry.expert_run("lib", second, "trec", "aa11", {"rank": 8, "seed": 1}) == run_id
    run = registry.client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"rank": "8", "seed": "1"}
    assert run.data.tags["ttmoe.run"] == second
    assert [run.run_id for run in registry.child_runs("lib", second)] == [run_id]
    assert registry.child_runs("lib", first) == []
    trial = registry.expert_run("lib", second, "trec", "aa11", {}, search=True)
    assert trial != run_id  # searches have another experiment


def test_a_run_below_its_parent_as_earlier_versions_wrote_it_is_found_and_moved_to_the_top(registry):
    first = registry.start_run("lib", "run", {}, "a: 1\n", {})
    run_id = registry.expert_run("lib", None, "trec", "aa11", {"rank": 8})
    registry.client.set_tag(run_id, "mlflow.parentRunId", first)
    assert [run.run_id for run in registry.child_runs("lib", first)] == [run_id]
    second = registry.start_run("lib", "run", {}, "a: 1\n", {})
    registry.expert_run("lib", second, "trec", "aa11", {})
    assert [run.run_id for run in registry.child_runs("lib", second)] == [run_id]
    assert registry.child_runs("lib", first) == []
    assert "mlflow.parentRunId" not in registry.client.get_run(run_id).data.tags


def test_an_experiment_opens_as_model_training_with_views_also_if_it_is_old(registry):
    tags = {"ttmoe.library": "lib", "mlflow.note.content": "my own"}
    old = registry.client.create_experiment("lib", (registry.artifact_root / "lib").as_uri(), tags)
    registry.start_run("lib", "run", {}, "a: 1\n", {})
    registry.start_run("lib", "search", {}, "a: 1\n", {}, search=True)
    tags = registry.client.get_experiment(old).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.note.content"] == "my own"  # a user's note stays
    view = json.loads(tags["mlflow.sharedViewState.experts"])
    assert view["name"] == "Experts"
    state = json.loads(view["state"])
    assert {"metrics.`test.accuracy`", "params.`adapter.rank`", "params.`parameters`"} <= {*state["selectedColumns"]}
    experts = [registry.expert_run("lib", None, task, "aa11", {}) for task in ("one", "two", "router")][:2]
    found = registry.client.search_runs([old], state["searchFilter"])
    assert {run.info.run_id for run in found} == {*experts}
    searches = registry.experiment("lib", search=True).tags
    assert (
        "(#/experiments/2/runs?workflowType=machine_learning&viewStateShareKey=trials)"
        in searches["mlflow.note.content"]
    )
    counted = Counts(registry.client)
    replace(registry, client=counted).start_run("lib", "run", {}, "a: 1\n", {})
    assert "set_experiment_tag" not in counted.calls  # nothing is written twice


def test_a_run_has_its_data_set_once(registry):
    from orchestrator.registry.runs import TrainingData

    data = TrainingData("trec", "0123456789ab", "local", {"uri": "trec.jsonl"}, ("text", "label"), {"num_rows": 40})
    run_id = registry.expert_run("lib", None, "trec", "aa11", {}, data=data)
    registry.expert_run("lib", None, "trec", "aa11", {}, data=data)
    (entry,) = registry.client.get_run(run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("trec", "0123456789ab")
    assert [column["name"] for column in json.loads(entry.dataset.schema)["mlflow_colspec"]] == ["text", "label"]
    assert json.loads(entry.dataset.profile) == {"num_rows": 40}


def test_models_and_versions_are_described_also_if_the_model_is_old(registry, expert_folder):
    registry.client.create_registered_model("lib.trec", {"ttmoe.library": "lib", "ttmoe.kind": "expert"})
    add_expert(registry, expert_folder, description="rank 8", about="Expert for trec")
    assert registry.client.get_registered_model("lib.trec").description == "Expert for trec"
    assert registry.client.get_model_version("lib.trec", "1").description == "rank 8"


@pytest.mark.parametrize("uri", ["http://a-server", "postgresql+psycopg2://a-database"])
def test_duplicates_of_runs_and_versions_are_removed(registry, expert_folder, uri):
    """An HTTP client repeats a request if the response was lost; drivers on two machines may share a database."""
    version = add_expert(registry, expert_folder)
    tags = registry.client.get_model_version("lib.trec", "1").tags
    client = registry.client

    class Twice(FailsAfter):
        def __getattr__(self, name):
            call = getattr(client, name)
            twice = name == "create_model_version"
            return (lambda *args, **more: [call(*args, **more), call(*args, **more)][1]) if twice else call

    twice = replace(registry, client=Twice(client, 0), uri=uri)
    made = add_expert(twice, expert_folder, spec_hash="dd44")
    assert made.version == 2
    assert [v.version for v in registry.experts("lib", every=True)] == [1, 2]

    experiment = registry.experiment("lib").experiment_id
    run_tags = {key: tags[key] for key in ("ttmoe.spec_hash", "ttmoe.task")}
    registry.client.create_run(experiment, tags=run_tags)
    assert registry.expert_run("lib", "none", "trec", "aa11", {}) == version.run_id
    assert len(all_runs(registry)) == 2


@pytest.fixture
def made(expert_folder, router_folder):
    return expert_folder.parent


@pytest.fixture
def undisturbed(fresh_store, tmp_path, made):
    registry = open_copy(fresh_store, tmp_path / "undisturbed")
    drive(registry, made)
    return snapshot(registry)


WRITES = {
    *("create_experiment", "create_run", "log_batch", "log_artifact", "log_artifacts", "log_text", "set_terminated"),
    *("create_registered_model", "create_model_version", "set_registered_model_alias"),
}


@pytest.mark.parametrize(
    "for_good", [pytest.param(False, marks=pytest.mark.thorough, id="time-out"), pytest.param(True, id="death")]
)
def test_after_a_failure_of_any_call_a_repetition_completes_the_registry(
    fresh_store, tmp_path, made, undisturbed, for_good, request
):
    """A call that succeeded on the server may still fail here: it timed out, or its process died.

    With ``--thorough`` every call fails, in both ways; else a third of the first and the last of each kind.
    """
    registry = open_copy(fresh_store, tmp_path / "all")
    client = FailsAfter(registry.client, 0)
    drive(replace(registry, client=client), made)
    calls = client.writes
    assert set(calls) >= WRITES
    ends = {calls.index(name) for name in calls} | {len(calls) - 1 - calls[::-1].index(name) for name in calls}
    for n in range(len(calls)) if request.config.getoption("--thorough") else sorted(ends)[random.randrange(3) :: 3]:
        registry = open_copy(fresh_store, tmp_path / f"{n}")
        with pytest.raises(TookEffect):
            drive(replace(registry, client=FailsAfter(registry.client, n + 1, for_good=for_good)), made)
        drive(registry, made)
        assert not all_runs(registry, "RUNNING"), calls[n]
        assert snapshot(registry) == undisturbed, (n, calls[n])


def drive_and_die(folder, made, n):
    from orchestrator.registry import Registry

    registry = Registry.open(f"sqlite:///{folder}/mlflow.db", folder / "mlartifacts")
    drive(replace(registry, client=Kills(registry.client, n)), made, parts=("expert",))


def test_a_driver_that_is_killed_after_any_call_is_continued(fresh_store, tmp_path, made, request):
    """Each call with ``--thorough``, else every seventh from a random one on."""
    interval = 1 if request.config.getoption("--thorough") else 7
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["orchestrator.registry"])
    expected = open_copy(fresh_store, tmp_path / "expected")
    drive(expected, made, parts=("expert",))
    content = snapshot(expected)
    killed = []
    for n in range(random.randrange(interval) + 1, 100, interval):
        registry = open_copy(fresh_store, tmp_path / f"{n}")
        process = context.Process(target=drive_and_die, args=(tmp_path / f"{n}", made, n))
        process.start()
        process.join()
        if process.exitcode != 9:
            assert process.exitcode == 0
            break
        killed.append(n)
        drive(registry, made, parts=("expert",))
        assert snapshot(registry) == content, n
    assert killed[-1] + interval > 11


@pytest.mark.parametrize("numbers", [(2,), (1, 2)])
def test_removing_may_fail_after_any_call_and_be_repeated(fresh_store, tmp_path, made, numbers):
    def library(name):
        registry = open_copy(fresh_store, tmp_path / name)
        for spec_hash in ("aa11", "cc33"):
            add_expert(registry, made / "expert", spec_hash=spec_hash)
        return registry

    expected = library("expected")
    expected.remove_versions("lib", "trec", numbers)
    assert [each.version for each in expected.experts("lib", every=True)] == [1] * (2 - len(numbers))
    assert len(all_runs(expected)) == 2 - len(numbers)
    failed = []
    for n in range(1, 10):
        registry = library(f"{n}")
        client = FailsAfter(registry.client, n, for_good=True)
        try:
            replace(registry, client=client).remove_versions("lib", "trec", numbers)
        except TookEffect:
            failed.append(client.writes[-1])
            registry.remove_versions("lib", "trec", numbers)
        assert snapshot(registry) == snapshot(expected)
        if client.left > 0:
            break
    assert set(failed) == {"delete_run", "delete_model_version" if len(numbers) == 1 else "delete_registered_model"}
    expected.remove_versions("lib", "never", (1,))  # a task without versions is no error


def test_a_library_is_removed_whole_and_another_stays(registry, made):
    add_expert(registry, made / "expert")
    registry.start_run("lib", "search", {}, "", {}, search=True)
    registry.start_run("library", "run", {}, "", {})
    for _ in range(2):  # it can be repeated
        registry.remove_library("lib")
        assert registry.experts("lib", every=True) == []
        assert {each.name for each in registry.libraries()} == {"library"}
        assert len(all_runs(registry)) == 1


def test_a_version_whose_driver_died_before_its_aliases_gets_them(registry, made):
    """``find_expert`` finds the version, so no driver registers it again: ``close_stale`` completes it."""
    run_id = registry.expert_run("lib", "none", "trec", "aa11", {})
    client = FailsAfter(registry.client, 1)
    client.fail = lambda name: (_ for _ in ()).throw(TookEffect(name)) if name == "create_model_version" else None
    client.left = 2  # registered model, version
    with pytest.raises(TookEffect):
        replace(registry, client=client).register_expert("lib", "trec", "aa11", made / "expert", run_id, {})
    registry.finish_run(run_id, "FAILED")
    assert registry.find_expert("lib", "trec", "aa11").aliases == ()
    later = add_expert(registry, made / "expert", spec_hash="cc33")
    assert registry.close_stale("lib") == 1
    assert registry.client.get_run(run_id).info.status == "FINISHED"
    assert registry.find_expert("lib", "trec", "cc33").aliases == later.aliases == ("candidate",)  # the newest keeps it
    assert registry.close_stale("lib") == 0


def test_two_tasks_of_one_spec_have_a_run_each(registry, expert_folder):
    """The same data under two names has the same hash but different files."""
    first = add_expert(registry, expert_folder, task="one", spec_hash="aa11")
    (expert_folder / "expert.json").write_text('{"task": "two"}')
    second = add_expert(registry, expert_folder, task="two", spec_hash="aa11")
    assert first.run_id != second.run_id
    assert json.loads((registry.fetch(first) / "expert.json").read_text())["task"] == "trec"


def test_stale_runs_are_closed(registry):
    parent = registry.start_run("lib", "run", {}, "", {})
    registry.expert_run("lib", parent, "trec", "aa11", {})
    registry.start_run("lib", "search", {}, "", {}, search=True)
    other = registry.start_run("other", "run", {}, "", {})
    assert sorted(registry.open_runs("lib")) == ["run", "search", "trec"]
    assert registry.close_stale("lib") == 3
    assert registry.open_runs("lib") == registry.open_runs("never-run") == []
    assert [run.info.run_id for run in all_runs(registry, "RUNNING")] == [other]
    assert registry.close_stale("never-run") == 0
    assert {each.name for each in registry.libraries()} == {"lib", "other"}


def twice(registry, made, task="trec", spec_hash="aa11"):
    """Register a spec in two runs, as two drivers do that know nothing of each other, and return both versions."""
    versions = []
    for _ in range(2):
        run = registry.expert_run("lib", "none", task, spec_hash, {}, is_new=True)
        version = registry.register_expert("lib", task, spec_hash, made / "expert", run, {}, is_new=True, promote=True)
        versions.append(version)
    return versions


@pytest.mark.parametrize("gone", [False, True], ids=["", "the files of the first are gone"])
@pytest.mark.parametrize("crashed", [0, 1], ids=["the first crashed", "the second crashed"])
def test_of_versions_with_one_spec_one_remains_with_its_run(registry, made, crashed, gone):
    """Whichever driver died before it looked for another version; both were promoted."""
    first, second = versions = twice(registry, made)
    other = add_expert(registry, made / "expert", spec_hash="cc33")
    registry.finish_run(versions[1 - crashed].run_id, "FINISHED")
    if gone:
        shutil.rmtree(registry.fetch(first))
    kept, deleted = (second, first) if gone else (first, second)
    assert registry.close_stale("lib") == 1
    assert [version.version for version in registry.experts("lib", every=True)] == [kept.version, other.version]
    assert registry.find_expert("lib", "trec", "aa11").aliases == ("champion",)
    assert {run.info.run_id: run.info.status for run in all_runs(registry)} == {
        kept.run_id: "FINISHED",
        other.run_id: "FINISHED",
    }
    assert deleted.run_id != kept.run_id
    assert registry.close_stale("lib") == 0


def test_of_runs_with_one_spec_or_one_request_one_remains(registry, made):
    """A server got a request twice, and the driver died before it looked; or its run was overtaken by another's."""
    version = add_expert(registry, made / "expert", spec_hash="bb22")
    tags = {"ttmoe.kind": "expert", "ttmoe.task": "trec"}
    create = partial(registry.client.create_run, registry.experiment_id("lib"))
    trial = partial(registry.client.create_run, registry.experiment_id("lib", search=True))
    for at in (1, 2):
        create(at, tags | {"ttmoe.spec_hash": "aa11"}, f"expert {at}")
        create(at, tags | {"ttmoe.spec_hash": "bb22"}, f"registered by another run {at}")
        create(at, {"ttmoe.kind": "run", "ttmoe.token": "5ec7"}, f"run {at}")
        trial(at, tags | {"ttmoe.kind": "trial", "ttmoe.spec_hash": "aa11"}, f"trial {at}")
        create(at, {"ttmoe.kind": "run"}, f"run of an older version {at}")
    assert registry.close_stale("lib") == 10
    left = {run.info.run_name: run.info.status for run in all_runs(registry)}
    assert left == {
        "trec": "FINISHED",
        **dict.fromkeys(["expert 1", "run 1", "trial 1"], "KILLED"),
        **dict.fromkeys(["run of an older version 1", "run of an older version 2"], "KILLED"),
    }
    assert registry.find_expert("lib", "trec", "bb22") == version
    assert registry.close_stale("lib") == 0


def test_libraries_are_listed_latest_first_without_their_searches(registry):
    registry.start_run("one", "run", {}, "", {})
    time.sleep(0.01)
    registry.start_run("two", "run", {}, "", {})
    registry.start_run("two", "search", {}, "", {}, search=True)
    registry.experiment("three")
    listed = registry.libraries()
    assert [each.name for each in listed] == ["two", "one", "three"]
    assert listed[2].last_run is None


def test_metrics_in_thousands_not_finite_and_sent_twice(registry):
    run_id = registry.start_run("lib", "run", {}, "", {})
    rows = [("loss", float(step), step, 1000 + step) for step in range(2500)] + [("bad", math.nan, 1, 1)]
    registry.log_metrics(run_id, rows)
    registry.log_metrics(run_id, rows)
    assert len(registry.client.get_metric_history(run_id, "loss")) == 2500
    assert math.isnan(registry.client.get_run(run_id).data.metrics["bad"])


def test_a_deleted_experiment_comes_back(registry):
    registry.client.delete_experiment(registry.experiment("lib").experiment_id)
    assert registry.find_experiment("lib") is None
    assert registry.experiment("lib").lifecycle_stage == "active"


def test_names_that_would_break_the_store_are_refused(registry, expert_folder):
    with pytest.raises(InputError, match="library"):
        registry.experts("a/b")
    with pytest.raises(InputError, match="spec hash"):
        registry.find_expert("lib", "trec", "x' or name = 'y")
    with pytest.raises(InputError, match="router"):
        registry.register_expert("lib", "router", "aa11", expert_folder, "run", {})


def test_the_registered_router_loads_as_a_pyfunc_model(registry, router_folder, tmp_path, monkeypatch):
    import pandas as pd

    import orchestrator.experts.base_folder
    import ttmoe.routed
    from ttmoe.prediction import Prediction

    class Fake:
        @classmethod
        def load(cls, folder, base, device):
            assert (folder / "experts/trec/expert.safetensors").is_file()
            assert json.loads((folder / "lock.json").read_text()) == {"trec": "aa11"}
            assert (base, device) == ("the base", "cpu")
            return cls()

        def predict(self, inputs):
            return [Prediction("trec", str(each).upper(), 0.5, 1.0, {"a": 1.0}) for each in inputs]

    monkeypatch.setattr(ttmoe.routed, "RoutedModel", Fake)
    monkeypatch.setattr(
        orchestrator.experts.base_folder, "find_base", lambda recorded, folders, cache: {"/b": "the base"}[folders[0]]
    )
    run_id = registry.start_run("lib", "run", {}, "", {})
    lock = {"trec": "aa11"}
    version = registry.register_router("lib", "bb22", router_folder, lock, run_id, {}, base_folder=Path("/b"))
    import mlflow.pyfunc  # after the registry, which silences warnings of its first import

    model = mlflow.pyfunc.load_model(str(registry.fetch(version)), model_config={"device": "cpu"})
    answer = model.predict(pd.DataFrame({"text": ["hello", "you"]}, index=[3, 5]))
    assert answer.to_dict("list") == {
        "task": ["trec"] * 2,
        "label": ["HELLO", "YOU"],
        "confidence": [0.5] * 2,
        "routing": [1.0] * 2,
        "scores": [{"a": 1.0}] * 2,
    }
    assert answer.index.tolist() == [3, 5]
    kinds = [label.partition("(")[0] for label in model.predict(model.input_example)["label"]]
    assert kinds == ["WHAT IS THE CAPITAL OF FRANCE?", "", "CHOICE"]
    inputs, outputs = model.metadata.signature.inputs, model.metadata.signature.outputs
    assert [(column.name, column.required) for column in inputs] == [
        ("text", True), ("second", False), ("choices", False), ("messages", False)]  # fmt: skip
    assert [column.name for column in outputs] == ["task", "label", "confidence", "routing", "scores"]
    with pytest.raises(mlflow.exceptions.MlflowException, match="text"):
        model.predict(pd.DataFrame({"question": ["hello"]}))


def test_a_base_that_is_missing_or_another_is_named(tmp_path):
    from orchestrator.experts.base_folder import find_base

    identity = {"id": "tiny", "digest": "0" * 64}
    with pytest.raises(InputError, match="nothing records where base 'tiny' is"):
        find_base(identity, [])
    with pytest.raises(InputError, match="'tiny' is not in folder"):
        find_base(identity, [str(tmp_path / "none")])
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    with pytest.raises(InputError, match="not 'tiny'"):
        find_base(identity, [str(tmp_path)])


def open_and_register(root, number, barrier, results):
    try:
        from orchestrator.registry import Registry

        barrier.wait()
        registry = Registry.open(f"sqlite:///{root}/mlflow.db", Path(root) / "mlartifacts")
        folder = Path(root) / f"made{number}"
        folder.mkdir()
        (folder / "expert.json").write_text("{}")
        add_expert(registry, folder, task=f"task{number}", spec_hash=f"ee{number}")
        results.put("")
    except BaseException as error:
        results.put(repr(error))


def test_six_processes_open_a_fresh_store_at_once(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["orchestrator.registry"])  # so that all six open the store at the same time
    barrier, results = context.Barrier(6), context.Queue()
    root = tmp_path / "deep" / "runs"
    processes = [
        context.Process(target=open_and_register, args=(str(root), number, barrier, results)) for number in range(6)
    ]
    root.parent.mkdir()
    root.mkdir()
    for process in processes:
        process.start()
    errors = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert errors == [""] * 6
    from orchestrator.registry import Registry

    registry = Registry.open(f"sqlite:///{root}/mlflow.db", root / "mlartifacts")
    assert [v.task for v in registry.experts("lib")] == [f"task{number}" for number in range(6)]


def test_an_interrupted_creation_of_the_store_is_repeated(fresh_store):
    assert not fresh_store.with_name("mlflow.db.new").exists()
    assert fresh_store.stat().st_size > 100_000


def test_an_older_schema_is_upgraded_and_kept_beside(tmp_path, registry):
    """The store of an older MLflow, created with its migrations."""
    import sqlalchemy
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    from orchestrator.registry import Registry

    old = tmp_path / "old.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{old}")
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(f"sqlite:///{old}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head-3")
    engine.dispose()
    assert Registry.open(f"sqlite:///{old}", tmp_path / "mlartifacts").libraries() == []
    assert len(list(tmp_path.glob("old.db.*.bak"))) == 1

    with sqlite3.connect(old) as database:
        database.execute("UPDATE alembic_version SET version_num = 'newer'")
    database.close()
    with pytest.raises(InputError, match="newer MLflow"):
        Registry.open(f"sqlite:///{old}", tmp_path / "mlartifacts")


@pytest.mark.parametrize(
    ("uri", "message"),
    [("sqlite:///{tmp}/text.db", "not an MLflow store"), ("sqlite:///{tmp}/text.db/x.db", "cannot be created"),
     ("http://127.0.0.1:1", "no MLflow server responds"), ("ftp://x", "not an MLflow store")],
)  # fmt: skip
def test_a_store_that_cannot_be_opened_is_named(tmp_path, uri, message):
    from orchestrator.registry import Registry

    (tmp_path / "text.db").write_text("This is not a database, but it is long enough to pass a check of the size.")
    with pytest.raises(InputError, match=message):
        Registry.open(uri.format(tmp=tmp_path), tmp_path / "mlartifacts")


def test_a_library_whose_experiments_were_deleted_is_restored_by_the_next_run(registry, expert_folder):
    """Their models stay, so a run with nothing to do would create no experiment, and no command find the library."""
    version = add_expert(registry, expert_folder)
    search = registry.start_run("lib", "search", {"spec_hash": "5ea7"}, "", {}, search=True)
    for name in ("lib", "lib.search"):
        registry.client.delete_experiment(registry.client.get_experiment_by_name(name).experiment_id)
    assert registry.libraries() == []
    assert registry.close_stale("lib") == 1
    assert [library.name for library in registry.libraries()] == ["lib"]
    assert registry.experts("lib") == [version]
    assert {registry.client.get_run(run).info.lifecycle_stage for run in (version.run_id, search)} == {"active"}


def test_a_store_in_a_folder_of_any_name(tmp_path, fresh_store, expert_folder):
    """A CI system names folders after branches: feature%2Fx. A new file is made there, and artifacts come back."""
    from orchestrator.registry import Registry

    for name in ("new%2Fx?a=b", "a b#é"):
        root = tmp_path / name
        store = find_store(root=root)
        registry = Registry.open(store.uri, store.artifacts, store.source)
        version = add_expert(registry, expert_folder)
        assert (registry.fetch(version) / "expert.safetensors").is_file()
        assert {path.name for path in root.iterdir()} >= {"mlflow.db", "mlartifacts"}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and path.name in ("new", "new%2Fx")) == []


class Server(BaseHTTPRequestHandler):
    """Answers the user ann, and nobody else."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        allowed = self.headers["Authorization"] == "Basic " + base64.b64encode(b"ann:ge@heim").decode()
        body = b'{"experiments": []}' if allowed else b'{"error_code": "PERMISSION_DENIED", "message": "who are you?"}'
        self.send_response(200 if allowed else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("USERNAME", "PASSWORD"):  # set, so that what opening a store sets is undone
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    Server.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()


def test_mlflows_client_asks_the_server_with_the_user_of_the_uri_or_of_its_variables(server, tmp_path, monkeypatch):
    from orchestrator.registry import Registry

    for name, value in (("USERNAME", "ann"), ("PASSWORD", "ge@heim")):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    Registry.open(f"http://{server}", tmp_path)
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    opened = Registry.open(f"http://ann:ge%40heim@{server}", tmp_path)
    assert opened.libraries() == []
    assert opened.uri == f"http://{server}"  # MLflow's errors name it


@pytest.mark.parametrize("address", ["{server}", "127.0.0.1:1", "127.0.0.1", "127.0.0.1:port", "[127.0.0.1"])
def test_a_server_that_refuses_or_is_not_there_is_named_without_the_password(server, tmp_path, address):
    from orchestrator.registry import Registry

    address = address.format(server=server)
    with pytest.raises(InputError) as caught:
        Registry.open(f"http://ann:geheim@{address}", tmp_path, "MLFLOW_TRACKING_URI")
    assert caught.value.where == "MLFLOW_TRACKING_URI"
    assert f"http://***@{address}" in caught.value.what
    assert "geheim" not in str(caught.value)
    assert len(Server.asked) <= 1


def test_an_expert_takes_a_dozen_queries_and_listing_a_library_two(registry, expert_folder):
    add_expert(registry, expert_folder, task="first", spec_hash="ff00")
    counted = Counts(registry.client)
    add_expert(replace(registry, client=counted), expert_folder, metrics={"accuracy": 0.9})
    assert counted.calls == {
        "search_runs": 1, "create_run": 1, "log_batch": 1, "search_model_versions": 1, "create_registered_model": 1,
        "create_model_version": 1, "set_registered_model_alias": 1, "set_terminated": 1,
    }  # fmt: skip
    for number in range(30):
        add_expert(registry, expert_folder, task=f"task{number:02}", spec_hash=f"ff{number}", promote=True)
    counted = Counts(registry.client)
    assert len(replace(registry, client=counted).experts("lib", every=True)) == 32
    assert counted.calls == {"search_registered_models": 1, "search_model_versions": 1}


def test_a_tracking_server_serves_the_same_registry_and_ends_cleanly(tmp_path, registry, expert_folder):
    """``open_ui`` starts a server on a store; a registry works through it; SIGTERM leaves no process."""
    from orchestrator.progress.mlflow_ui import free_port
    from orchestrator.registry import Registry

    registry.start_run("ran", "run", {}, "", {})
    registry.client.create_experiment("old", tags={"ttmoe.library": "old"})
    port = free_port(5300)
    code = (
        "import sys; from pathlib import Path; from rich.console import Console; "
        "from orchestrator.config.store_address import find_store; "
        "from orchestrator.progress.mlflow_ui import open_ui; "
        "open_ui(find_store(root=Path(sys.argv[1]), uri=sys.argv[2]), int(sys.argv[3]), Console())"
    )
    command = [sys.executable, "-c", code, str(tmp_path), registry.uri, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ui:
        try:
            assert f":{port}" in ui.stdout.readline()
            listed = ui.stdout.readline()  # of the two libraries, the other has not run with this version
            assert listed.startswith("experts of ran: http")
            assert "/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=experts" in listed
            servers = psutil.Process(ui.pid).children(recursive=True)
            assert not any(registry.uri in process.cmdline() for process in servers)  # every user sees arguments
            remote = Registry.open(f"http://127.0.0.1:{port}", tmp_path / "cache")
            use_remote(remote, expert_folder)
            lose_files(remote, expert_folder, tmp_path / "mlartifacts")
        finally:
            ui.terminate()
        assert ui.wait(timeout=30) == 0
    assert len(servers) == 2
    assert not psutil.wait_procs(servers, timeout=1)[1]
    assert registry.experts("lib") == []  # added and removed


def use_remote(remote, expert_folder):
    version = add_expert(remote, expert_folder, metrics={"accuracy": 0.9}, promote=True)
    assert add_expert(remote, expert_folder) == version
    assert remote.experts("lib") == [version]
    folder = remote.fetch(version)
    assert folder == remote.fetch(version)
    assert (folder / "expert.safetensors").read_bytes() == (expert_folder / "expert.safetensors").read_bytes()
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]
    remote.log_metrics(version.run_id, [("bad", math.nan, 1, 1), ("loss", 0.5, 1, 1)])
    assert math.isnan(remote.client.get_run(version.run_id).data.metrics["bad"])
    fetch_search(remote, expert_folder)
    assert json.loads(remote.read_file(version, "expert.json"))["task"] == "trec"
    second = add_expert(remote, expert_folder, spec_hash="cc33")
    assert json.loads(remote.read_file(second, "expert.json"))["task"] == "trec"  # downloaded alone
    assert len(list(folder.parent.glob("lib.trec-*"))) == 1
    remote.remove_versions("lib", "trec", [1])
    assert [each.version for each in remote.experts("lib", every=True)] == [2]
    assert remote.client.get_run(version.run_id).info.lifecycle_stage == "deleted"
    assert not folder.exists()
    remote.remove_versions("lib", "trec", [2])
    assert remote.find_expert("lib", "trec", "cc33") is None


def lose_files(remote, expert_folder, served):
    """An upload of nothing is no version; a check asks the server, whatever was fetched before."""
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HttpArtifactRepository, "log_artifact", lambda *_, **__: None)
        with pytest.raises(WorkFailedError, match=r"did not keep .*expert\.safetensors"):
            add_expert(remote, expert_folder, spec_hash="ee55")
    assert remote.experts("lib", every=True) == []
    version = add_expert(remote, expert_folder, spec_hash="ee55")
    remote.fetch(version)
    remote.check_files(version)
    (stored,) = served.glob(f"**/{version.run_id}/artifacts/expert/expert.safetensors")
    stored.unlink()
    with pytest.raises(InputError, match="cannot be downloaded"):
        remote.check_files(version)
    remote.remove_versions("lib", "trec", [version.version])


def fetch_search(remote, expert_folder):
    """A download that failed halfway is repeated."""
    run_id = remote.start_run("lib", "search", {"spec_hash": "5ea7"}, "a: 1\n", {}, search=True)
    remote.log_file(run_id, expert_folder)
    assert remote.search_artifacts("lib", "5ea7") is None  # not finished
    remote.finish_run(run_id, "FINISHED")

    def half(uri, dst_path, tracking_uri):
        (Path(dst_path) / "artifacts").mkdir()
        (Path(dst_path) / "artifacts" / "config.yaml").write_text("a")
        raise OSError("connection lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlflow.artifacts.download_artifacts", half)
        with pytest.raises(InputError, match="connection lost"):
            remote.search_artifacts("lib", "5ea7")
    folder = remote.search_artifacts("lib", "5ea7")
    names = {"config.yaml", "plan.json", "expert.json", "expert.safetensors"}
    assert {each.name for each in folder.iterdir()} == names
    assert (folder / "config.yaml").read_text() == "a: 1\n"


def test_the_ui_names_a_free_port_and_a_missing_store(tmp_path, registry):
    from orchestrator.progress.mlflow_ui import open_ui

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {taken} is in use(.|\n)*--port \d+"):
            open_ui(find_store(root=tmp_path, uri=registry.uri), taken, None)
    with pytest.raises(InputError, match="no MLflow store"):
        open_ui(find_store(root=tmp_path / "none"), taken, None)


def test_only_the_registry_imports_mlflow():
    code = "import sys, orchestrator.pyfunc, orchestrator.progress.mlflow_ui; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_search_has_a_run_of_its_own_for_an_equal_trial(fresh_store, tmp_path):
    registry = open_copy(fresh_store, tmp_path)
    first, second = (
        registry.start_run("lib", name, {"spec_hash": name, "task": "trec"}, "", {}, search=True)
        for name in ("aa", "bb")
    )
    runs = [registry.expert_run("lib", search, "trec", "cc", {}, search=True) for search in (first, second, first)]
    assert runs[0] == runs[2] != runs[1]
    assert [run.run_id for run in registry.trial_runs("lib", first)] == [runs[0]]
