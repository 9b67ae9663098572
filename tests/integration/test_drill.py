"""The drill: it passes on a store that keeps everything, and fails on one that forgets."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import pytest
from killed_driver import units_inline
from mlflow_server import Server
from rich.console import Console

from cluster.driver_processes import WorkerProcess
from orchestrator.config.loading import load_config
from orchestrator.doctor import drill
from orchestrator.doctor.place import place_of

pytestmark = pytest.mark.integration


def delete_the_expert(root: Path, library: str) -> None:
    commands.open_registry(root).client.delete_registered_model(f"{library}.t0")


def truncate_its_weights(root: Path, library: str) -> None:
    (weights,) = (root / "mlartifacts" / library).rglob("expert/expert.safetensors")
    os.truncate(weights, weights.stat().st_size - 1)


class Scripted:
    """A driver in this process: the first has registered one expert when it is killed, the second does the rest."""

    pid = 1

    def __init__(self, config: Path, spoils: str, spoil: Callable[[Path, str], None], fresh_store: Path) -> None:
        self.loaded, self.spoils, self.spoil = load_config(str(config)), spoils, spoil
        self.fresh_store = fresh_store
        self.root = Path(self.loaded.config.storage.root)

    def wait_for(self, has_come: Any, seconds: float = 0) -> bool:
        return True

    def kill(self) -> None:
        """Nothing runs."""

    def begin(self) -> Scripted:
        self.root.mkdir()
        shutil.copy(self.fresh_store, self.root)
        one = self.loaded.config.model_copy(update={"tasks": {"t0": self.loaded.config.tasks["t0"]}})
        self.run(replace(self.loaded, config=one))
        return self

    def wait(self) -> int:
        if self.spoils == "before":
            self.spoil(self.root, self.loaded.config.library)
        self.run(self.loaded)
        if self.spoils == "after":
            self.spoil(self.root, self.loaded.config.library)
        return 0

    def run(self, loaded: Any) -> None:
        from orchestrator.run.driver import run_library

        with units_inline():
            run_library(loaded, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("spoils", "spoil", "fails"),
    [
        pytest.param("", delete_the_expert, "", id="keeps", marks=pytest.mark.thorough),
        pytest.param("before", delete_the_expert, "kept", id="forgets a version"),
        pytest.param("before", truncate_its_weights, "continued", id="loses a byte", marks=pytest.mark.thorough),
        pytest.param("after", truncate_its_weights, "files", id="loses a byte later", marks=pytest.mark.thorough),
    ],
)
def test_a_drill_fails_on_a_store_that_forgets(spoils, spoil, fails, fresh_store, tmp_path, monkeypatch):
    for name in commands.ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drill, "_TASKS", 2)
    monkeypatch.setattr(drill, "_TRAIN", {"steps": 2, "eval_every": 1})
    monkeypatch.setattr(drill, "worker_processes", lambda *_: [WorkerProcess(1)])
    monkeypatch.setattr(drill, "kill_process", lambda _: None)

    def start(config: Path, log: Path, uri: str | None) -> Scripted:
        assert uri is None
        driver = Scripted(config, spoils, spoil, fresh_store)
        return driver if driver.root.exists() else driver.begin()

    checks = {check.name: check for check in drill.run_drill(place_of(None), start=start)}
    assert {name for name, check in checks.items() if check.verdict == "failed"} == {fails} - {""}, checks
    assert checks["driver killed"].found == "process 1, with 1 of 2 experts registered"
    assert checks["connection cut"].verdict == "skipped"
    assert ("left" in checks) == bool(fails)
    assert (tmp_path / "runs").exists() == bool(fails)


@pytest.mark.thorough
def test_a_drill_on_this_machine_loses_nothing(tmp_path):
    done = commands.ttmoe(tmp_path, "doctor", "--drill")
    assert done.code == 0, done.out + done.err
    assert done.running == []
    assert "with 4 of 4 experts registered" not in done.out
    assert "Nothing failed" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_a_drill_with_a_server_cuts_the_connection_and_leaves_nothing_there(fresh_store, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "ELSEWHERE", ())
    shutil.copy(fresh_store, tmp_path)
    server = Server(tmp_path)
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
        done = commands.ttmoe(tmp_path, "doctor", "--drill")
    finally:
        server.stop()
        server.log.close()
    assert done.code == 0, done.out + done.err
    assert "requests of the driver were dropped" in " ".join(done.out.split())
    assert commands.versions(tmp_path) == {}
    assert [each.name for each in commands.open_registry(tmp_path).client.search_experiments()] == ["Default"]
