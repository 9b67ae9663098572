"""Jobs on a cluster of two nodes: submitted, followed, cancelled, and submitted again to continue."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import commands
import pytest
import tiny
from quickstart import ROOT
from ray_cluster import free_port, marked, running_cluster
from submitted_library import TASKS, write_submitted_library

# Ray's client of jobs passes aiohttp an argument of earlier versions.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")]

TOKEN = "0123456789abcdef" * 4
WHERE = ("--cluster", "two", "--config", "tiny.yaml")
ENDLESS = ("tasks.t3.train.steps=10000000", "tasks.t3.train.eval_every=1000", "tasks.t3.train.patience=0")
SUBMIT = ("submit", "tiny.yaml", "--cluster", "two", *(each for setting in ENDLESS for each in ("--set", setting)))


@pytest.fixture(scope="module", params=["open", pytest.param("token", marks=pytest.mark.thorough)])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the administrator, without or with a token."""
    folder = tmp_path_factory.mktemp(f"home-{request.param}")
    if request.param == "token":
        (folder / ".ray").mkdir()
        (folder / ".ray" / "auth_token").write_text(TOKEN)
    return folder


@pytest.fixture(scope="module")
def place(base_folder: Path, fresh_store: Path, tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """A folder with a config and its data; the storage, with an empty store, lies elsewhere."""
    folder, storage = tmp_path_factory.mktemp("laptop"), tmp_path_factory.mktemp("shared")
    shutil.copy(fresh_store, storage)
    profile = {"kind": "ray", "address": f"http://127.0.0.2:{free_port()}", "python": sys.executable,
               "storage": str(storage)}  # fmt: skip
    return write_submitted_library(folder, base_folder, {"two": profile})


@pytest.fixture(scope="module")
def cluster(place: Path, home: Path) -> Iterator[list[str]]:
    """The marks of the processes of each node of the cluster, which runs."""
    with cluster_of(place, home) as marks:
        yield marks


@contextmanager
def cluster_of(place: Path, home: Path) -> Iterator[list[str]]:
    """Run a cluster of two nodes at the address of the profile; yields the marks of their processes."""
    node, port = ["--num-cpus=1"], int(profile_of(place)["address"].rpartition(":")[2])
    mode = {"RAY_AUTH_MODE": "token"} if (home / ".ray").exists() else {}
    with running_cluster(node, node, dashboard_port=port, HOME=str(home), PYTHONPATH=str(ROOT), **mode) as (_, marks):
        yield marks


def wait_for_log(place: Path, job: str, text: str) -> None:
    """Wait until the output of a job contains a text."""
    ends = time.monotonic() + 300
    while text not in (log := commands.here(place, "jobs", "logs", job, *WHERE).out):
        assert time.monotonic() < ends, log
        time.sleep(0.5)


def profile_of(place: Path) -> dict[str, str]:
    return json.loads((place / "tiny.yaml").read_text())["clusters"]["two"]


def jobs_of(place: Path) -> list[tuple[str, str]]:
    """Return the identifier and the status of each job of the cluster."""
    listed = json.loads(commands.here(place, "jobs", "ls", *WHERE, "--json").out)
    return [(each["id"], each["status"]) for each in listed]


def storage_of(place: Path) -> Path:
    return Path(profile_of(place)["storage"])


def test_a_job_is_planned_followed_and_cancelled(place, cluster, home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    first = commands.here(place, *SUBMIT)
    assert first.code == 0, first.out + first.err
    job = first.out.split()[2]
    assert "4 missing" in first.out  # its plan, made there
    assert "2 in parallel" in first.out, first.out
    assert f"ttmoe jobs logs -f {job} --cluster two" in first.out
    assert f"Job {job} is running" in commands.here(place, *SUBMIT).out
    # Experts are trained on both nodes. A slow node may begin after the other has registered its first.
    assert tiny.wait_for(lambda: all(marked(mark, "ray::Worker") for mark in cluster), 300)
    wait_for_log(place, job, "registered")
    cancelled = commands.here(place, "jobs", "cancel", job, *WHERE)
    assert cancelled.out == f"job {job}: stopped\n", cancelled.err
    assert not [run for run in commands.runs(storage_of(place)) if run.info.status == "RUNNING"]
    assert jobs_of(place) == [(job, "STOPPED")]


@pytest.mark.thorough
def test_the_same_command_continues_it_and_an_expert_is_skipped(place, cluster, home, monkeypatch):
    """After the test above."""
    monkeypatch.setenv("HOME", str(home))
    ((job, _),) = jobs_of(place)
    again = commands.here(place, *SUBMIT)
    assert f"Submitted job {job}-2" in again.out
    wait_for_log(place, f"{job}-2", "t3: training, step")
    assert commands.here(place, "jobs", "skip", "t3", *WHERE).out == "t3 is stopped and left out\n"
    followed = commands.here(place, "jobs", "logs", "-f", f"{job}-2", *WHERE)
    assert "Cached: " in followed.out
    assert "Routing accuracy" in followed.out  # the router serves the others
    assert followed.code == 4, followed.err
    assert jobs_of(place) == [(f"{job}-2", "FAILED"), (job, "STOPPED")]
    assert commands.versions(storage_of(place)) == {f"tiny.{name}": 1 for name in (*TASKS[:3], "router")}


@pytest.mark.thorough
def test_a_search_of_several_tasks_is_a_job(place, cluster, home, monkeypatch):
    """Its trials are trained on both nodes and recorded in the store of the cluster."""
    monkeypatch.setenv("HOME", str(home))
    before = commands.versions(storage_of(place))
    settings = ["search.tasks=[t0, t1]", "search.method=tpe", "search.trials=3", "search.ranks=[1, 2]",
                "search.steps=30", "search.confirm=0", "search.references=[]"]  # fmt: skip
    done = commands.ttmoe(place, "submit", "tiny.yaml", "--cluster", "two", "--command", "tune", "--follow",
                          *(each for setting in settings for each in ("--set", setting)))  # fmt: skip
    assert done.code == 0, done.out + done.err
    assert "recommended" in done.out
    assert "for all tasks" in done.out, done.out
    trials = [run for run in commands.runs(storage_of(place)) if run.data.tags.get("ttmoe.origin")]
    assert {run.info.status for run in trials} == {"FINISHED"}
    assert {run.data.tags["ttmoe.task"] for run in trials} == {"t0", "t1"}
    assert jobs_of(place)[0][1] == "SUCCEEDED"
    assert commands.versions(storage_of(place)) == before


def test_a_wrong_token_is_explained(place, cluster, home, tmp_path, monkeypatch):
    if not (home / ".ray").exists():
        pytest.skip("the cluster asks for no token")
    monkeypatch.setenv("HOME", str(tmp_path))
    refused = commands.ttmoe(place, "submit", "tiny.yaml", "--cluster", "two")
    assert refused.code == 2
    assert "the Ray cluster asks for a token" in refused.err
    assert "copy ~/.ray/auth_token" in refused.err


@pytest.mark.thorough
def test_on_a_new_cluster_after_the_head_was_lost_the_same_command_continues(base_folder, tmp_path):
    """All processes of the cluster are killed, the driver among them; the new cluster knows no job."""
    (tmp_path / "laptop").mkdir()
    (tmp_path / "shared").mkdir()
    profile = {"kind": "ray", "address": f"http://127.0.0.2:{free_port()}", "python": sys.executable,
               "storage": str(tmp_path / "shared")}  # fmt: skip
    place = write_submitted_library(tmp_path / "laptop", base_folder, {"two": profile})
    with cluster_of(place, tmp_path):
        first = commands.ttmoe(place, *SUBMIT)
        assert first.code == 0, first.out + first.err
        wait_for_log(place, first.out.split()[2], "registered")
    with cluster_of(place, tmp_path):
        again = commands.ttmoe(place, *SUBMIT[:4], "--follow")  # another job: t3 has an end
        assert again.code == 0, again.out + again.err
        assert "Cached: " in again.out
    assert commands.versions(storage_of(place)) == {f"tiny.{name}": 1 for name in (*TASKS, "router")}
    assert not [run for run in commands.runs(storage_of(place)) if run.info.status == "RUNNING"]
