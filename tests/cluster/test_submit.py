"""Jobs on a cluster of two nodes: submitted, followed, cancelled, and submitted again to continue."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from quickstart import ROOT
from ray_cluster import free_port, running_cluster
from submitted_library import write_submitted_library

pytestmark = pytest.mark.cluster

TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module", params=["open", pytest.param("token", marks=pytest.mark.thorough)])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the administrator, without or with a token."""
    folder = tmp_path_factory.mktemp(f"home-{request.param}")
    if request.param == "token":
        (folder / ".ray").mkdir()
        (folder / ".ray" / "auth_token").write_text(TOKEN)
    return folder


@pytest.fixture(scope="module")
def place(home: Path, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a config and its data, whose cluster runs; its storage lies elsewhere."""
    folder, port = tmp_path_factory.mktemp("laptop"), free_port()
    storage = str(tmp_path_factory.mktemp("shared"))
    address = f"http://127.0.0.2:{port}"
    profile = {"kind": "ray", "address": address, "storage": storage, "python": sys.executable}
    write_submitted_library(folder, base_folder, {"two": profile})
    node = ["--num-cpus=1"]
    mode = {"RAY_AUTH_MODE": "token"} if (home / ".ray").exists() else {}
    with running_cluster(node, node, dashboard_port=port, HOME=str(home), PYTHONPATH=str(ROOT), **mode):
        yield folder


def test_a_config_is_planned_run_followed_and_found_again(place, home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    first = commands.ttmoe(place, "submit", "tiny.yaml", "--cluster", "two")
    assert first.code == 0, first.out + first.err
    job = first.out.split()[2]
    assert "4 missing" in first.out  # its plan, made there
    assert "2 in parallel" in first.out, first.out
    assert f"ttmoe jobs logs -f {job} --cluster two" in first.out
    again = commands.ttmoe(place, "submit", "tiny.yaml", "--cluster", "two", "--follow")
    assert again.code == 0, again.out + again.err
    assert f"Job {job} is running" in again.out
    assert "Routing accuracy" in again.out  # its last lines
    done = commands.ttmoe(place, "submit", "tiny.yaml", "--cluster", "two")
    assert f"Job {job} has finished: nothing is submitted" in done.out
    listed = commands.ttmoe(place, "jobs", "ls", "--cluster", "two", "--config", "tiny.yaml", "--json")
    assert [(each["id"], each["status"]) for each in json.loads(listed.out)] == [(job, "SUCCEEDED")]


def test_a_cancelled_job_keeps_its_experts_and_goes_on(place, home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    change = ["--set", "train.steps=600", "--set", "train.eval_every=600"]
    arguments = ["submit", "tiny.yaml", "--cluster", "two", *change]
    submitted = commands.ttmoe(place, *arguments)
    assert submitted.code == 0, submitted.out + submitted.err
    job = submitted.out.split()[2]
    where = ["--cluster", "two", "--config", "tiny.yaml"]
    ends = time.monotonic() + 120
    while "registered" not in commands.ttmoe(place, "jobs", "logs", job, *where).out:
        assert time.monotonic() < ends
    cancelled = commands.ttmoe(place, "jobs", "cancel", job, *where)
    assert cancelled.out == f"job {job}: stopped\n", cancelled.err
    storage = Path(json.loads((place / "tiny.yaml").read_text())["clusters"]["two"]["storage"])
    assert not [run for run in commands.runs(storage) if run.info.status == "RUNNING"]
    again = commands.ttmoe(place, *arguments, "--follow")
    assert again.code == 0, again.out + again.err
    assert f"Submitted job {job}-2" in again.out
    assert "Cached: " in again.out


def test_a_wrong_token_is_explained(place, home, tmp_path, monkeypatch):
    if not (home / ".ray").exists():
        pytest.skip("the cluster asks for no token")
    monkeypatch.setenv("HOME", str(tmp_path))
    refused = commands.ttmoe(place, "submit", "tiny.yaml", "--cluster", "two")
    assert refused.code == 2
    assert "the Ray cluster asks for a token" in refused.err
    assert "copy ~/.ray/auth_token" in refused.err
