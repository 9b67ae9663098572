"""Jobs on a real Slurm with two nodes on this machine: run to the end, cancelled, and stopped by their time limit."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from slurm_cluster import is_installed, slurm_cluster
from submitted_library import TASKS, write_submitted_library

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not is_installed(), reason="Slurm is not installed (slurm-wlm and munge), or needs root"),
]

WHERE = ("--cluster", "hpc", "--config", "tiny.yaml")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as env:
        yield env


@pytest.fixture
def place(
    slurm: dict[str, str], base_folder: Path, fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with a config and its data, on the login node; its storage lies beside it."""
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    folder, storage = tmp_path / "login", tmp_path / "shared"
    folder.mkdir()
    storage.mkdir()
    shutil.copy(fresh_store, storage)
    profile = {"kind": "slurm", "storage": str(storage), "python": sys.executable, "nodes": 2, "cpus_per_node": 1,
               "time": "00:10:00", "grace": 30}  # fmt: skip
    return write_submitted_library(folder, base_folder, {"hpc": profile})


def change(place: Path, **profile: object) -> None:
    """Change the cluster's profile."""
    config = json.loads((place / "tiny.yaml").read_text())
    config["clusters"]["hpc"].update(profile)
    (place / "tiny.yaml").write_text(json.dumps(config))


def wait_for(place: Path, job: str, text: str, seconds: float = 150) -> str:
    """Return the output of a job once it contains a text."""
    ends = time.monotonic() + seconds
    while text not in (log := commands.ttmoe(place, "jobs", "logs", job, *WHERE).out):
        assert time.monotonic() < ends, log
        time.sleep(1)
    return log


@pytest.mark.thorough
def test_a_config_runs_on_all_nodes_of_an_allocation(place):
    done = commands.ttmoe(place, "submit", "tiny.yaml", "--cluster", "hpc", "--follow")
    assert done.code == 0, done.out + done.err
    assert "2 in parallel" in done.out  # its plan, made there
    assert "Routing accuracy" in done.out
    (job,) = json.loads(commands.ttmoe(place, "jobs", "ls", *WHERE, "--json").out)
    assert (job["status"], job["exit_code"]) == ("SUCCEEDED", 0)
    storage = place.parent / "shared"
    assert commands.versions(storage) == {f"tiny.{name}": 1 for name in (*TASKS, "router")}
    (run,) = [run for run in commands.runs(storage) if run.data.tags["ttmoe.kind"] == "run"]
    assert run.data.tags["ttmoe.job"] == job["id"]


@pytest.mark.thorough
def test_a_cancelled_job_ends_in_order_and_another_attempt_goes_on(place):
    arguments = ("submit", "tiny.yaml", "--cluster", "hpc", "--set", "train.steps=2000", "--set", "train.patience=0")
    submitted = commands.ttmoe(place, *arguments)
    assert submitted.code == 0, submitted.out + submitted.err
    job = submitted.out.split()[2]
    wait_for(place, job, "registered")
    cancelled = commands.ttmoe(place, "jobs", "cancel", job, *WHERE)
    assert cancelled.out == f"job {job}: stopped\n", cancelled.err
    assert "SUCCEEDED" not in commands.ttmoe(place, "jobs", "status", job, *WHERE, "--json").out
    assert not [run for run in commands.runs(place.parent / "shared") if run.info.status == "RUNNING"]
    again = commands.ttmoe(place, *arguments)
    assert f"Submitted job {job}-2" in again.out
    assert "Cached: " in wait_for(place, f"{job}-2", "Cached: ")
    commands.ttmoe(place, "jobs", "cancel", f"{job}-2", *WHERE)


@pytest.mark.thorough
def test_a_job_that_reaches_its_time_limit_is_queued_again_and_finishes(place):
    """Slurm counts the limit in minutes, and sends the signal up to a minute early."""
    change(place, time="00:02:00", grace=20)
    done = commands.ttmoe(place, "submit", "tiny.yaml", "--cluster", "hpc", "--follow", "--set", "train.steps=4000",
                          "--set", "train.eval_every=500", "--set", "train.patience=0", timeout=1500)  # fmt: skip
    assert done.code == 0, done.out + done.err
    assert "The time limit is near: the job is queued again, and continues." in done.out
    assert commands.versions(place.parent / "shared") == {f"tiny.{name}": 1 for name in (*TASKS, "router")}


@pytest.mark.thorough
def test_doctor_checks_every_node_of_an_allocation(place):
    done = commands.ttmoe(place, "doctor", "tiny.yaml", "--cluster", "hpc", "--json")
    assert done.code == 0, done.out + done.err
    checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert checks["Ray"]["found"].split("; ")[1].startswith("2 nodes of the cluster at ")
    assert checks["training"]["verdict"] == "ok"
    assert not list((place.parent / "shared").glob("ttmoe-doctor-*"))  # only the folder of the job is left
