"""The embedded Ray ends by itself in the middle of a run: it is started again, and the run goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext

import commands
import pytest
import scripted_jobs
from killed_driver import units_inline
from scripted_jobs import in_place_of_training

pytestmark = pytest.mark.integration


@pytest.mark.thorough
@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_a_run_survives_the_end_of_ray(process, base_folder, fresh_store, tmp_path):
    config = scripted_jobs.write_library(tmp_path, base_folder, 3)
    (tmp_path / "runs").mkdir()
    shutil.copy(fresh_store, tmp_path / "runs")
    with in_place_of_training({"t0001": process}, tmp_path / "marks"):
        done = commands.succeeded(commands.here(tmp_path, "run", config.name, "--set", "resources.max_parallel=1"))
    assert (tmp_path / "marks" / "t0001").exists()
    assert f"Ray's process {process} ended; Ray is started again, and the run goes on" in done.out
    assert "Traceback" not in done.out + done.err
    assert "state-dump" not in done.out + done.err  # Ray prints the end of its log
    assert commands.versions(tmp_path / "runs") == {"many.t0000": 1, "many.t0001": 1, "many.t0002": 1, "many.router": 1}
    (incidents,) = (tmp_path / "runs").rglob("incidents.json")
    (incident,) = json.loads(incidents.read_text())
    assert (incident["stage"], incident["failure"]["error"]) == ("Ray", "ClusterEndedError")


def test_a_ray_that_ends_each_time_ends_the_command_with_one_sentence(base_folder, fresh_store, tmp_path, monkeypatch):
    import orchestrator.run.stages
    from cluster.error import ClusterEndedError

    starts = []

    @contextmanager
    def session():
        starts.append(1)
        raise ClusterEndedError("Ray's process raylet ended", where="this machine", fix="see its memory")
        yield

    config = scripted_jobs.write_library(tmp_path, base_folder, 1)
    (tmp_path / "runs").mkdir()
    shutil.copy(fresh_store, tmp_path / "runs")
    monkeypatch.setattr(orchestrator.run.stages, "ray_session", session)
    done = commands.here(tmp_path, "run", config.name)
    assert done.code == 1
    assert len(starts) == 2  # failures.retries is 1
    assert done.err == "error: this machine\n  Ray's process raylet ended\n  see its memory\n"


@pytest.mark.parametrize("ends", [1, 2])
def test_a_search_goes_on_after_the_end_of_ray(base_folder, fresh_store, tmp_path, monkeypatch, ends):
    import orchestrator.run.tune_driver as module
    from cluster.error import ClusterEndedError

    def search(plan, registry, view, pool, made):
        starts.append(1)
        if len(starts) <= ends:
            raise ClusterEndedError("Ray's process raylet ended", where="this machine", fix="see its memory")

    starts = []
    config = scripted_jobs.write_library(tmp_path, base_folder, 1)
    (tmp_path / "runs").mkdir()
    shutil.copy(fresh_store, tmp_path / "runs")
    monkeypatch.setattr("orchestrator.search.tuning.run_search", search)
    monkeypatch.setattr(module, "ray_session", nullcontext)
    monkeypatch.setattr(module, "check_nodes", lambda plan: None)
    with units_inline():
        done = commands.here(tmp_path, "tune", config.name, "--set", "search.ranks=[1]")
    assert len(starts) == 2  # failures.retries is 1
    assert (done.code, "the search goes on" in done.out) == (ends - 1, True)
    assert done.err.startswith("error: this machine\n  Ray's process raylet ended" if ends == 2 else "")


def test_a_ray_that_cannot_start_is_one_sentence(monkeypatch):
    import ray

    from cluster.error import ClusterError
    from cluster.local import ray_session

    def refuse(**_):
        raise RuntimeError("The current node timed out\n  during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(ClusterError, match="Ray does not start: The current node timed out"),
        ray_session(),
    ):
        pass


@pytest.mark.thorough
def test_a_home_that_cannot_be_written():
    code = """
import os, ray
from cluster.local import ray_session
for _ in range(2):
    with ray_session():
        print(ray.get(ray.remote(lambda: 5).remote()))
    assert "RAY_AUTH_TOKEN" not in os.environ
"""
    env = commands.environment(HOME="/proc/nohome", PYTHONPATH=":".join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "5\n5\n"), done.stderr
