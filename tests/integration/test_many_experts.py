"""Sixteen scripted experts through plan, worker pool, recorder and registry: nothing is lost or duplicated."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
from commands import open_registry, runs, statuses
from scripted_jobs import EXTRA, STEPS, make_library, write_library

# Without ``--thorough``, `test_driver_killed` and `test_reliability` check the same on two experts.
pytestmark = [pytest.mark.integration, pytest.mark.thorough]

COUNT = 16
FATES = {"t0005": "fail", "t0007": "die", "t0009": "once", "t0015": "fail"}
LOST = {"t0005", "t0007", "t0015"}


@pytest.fixture
def ray():
    """One Ray session for all runs."""
    from cluster.local import ray_session

    with ray_session():
        yield


def test_a_few_fail_or_die_and_nothing_is_lost(ray, base_folder, fresh_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_library(tmp_path, base_folder, COUNT)
    (tmp_path / "runs").mkdir()
    shutil.copy(fresh_store, tmp_path / "runs")
    root, tasks = tmp_path / "runs", {f"t{i:04}" for i in range(COUNT)}

    first = make_library(path, FATES)
    assert (first["todo"], first["registered"], first["failed"]) == (COUNT, COUNT - len(LOST), len(LOST))
    registry = open_registry(root)
    assert {version.task for version in check_versions(registry)} == tasks - LOST
    assert statuses(root) == {("run", "FINISHED"): 1, ("expert", "FINISHED"): COUNT - 3, ("expert", "FAILED"): 3}
    check_runs(root, registry)

    # What comes back makes what is missing, in the runs that are there.
    again = make_library(path, {})
    assert (again["todo"], again["registered"], again["failed"]) == (3, 3, 0)
    assert {version.task for version in check_versions(registry)} == tasks
    assert statuses(root) == {("run", "FINISHED"): 2, ("expert", "FINISHED"): COUNT}
    check_runs(root, registry)

    assert make_library(path, {})["todo"] == 0


def check_versions(registry):
    """One version for each expert, with its own spec, run and files."""
    versions = registry.experts("many", every=True)
    assert {version.version for version in versions} == {1}
    assert all(version.aliases == ("candidate",) for version in versions)
    for of in ("task", "spec_hash", "run_id", "uri"):
        assert len({getattr(version, of) for version in versions}) == len(versions), of
    contents = set()
    for version in versions:
        folder = registry.fetch(version)
        contents.add((folder / "extra.bin").read_bytes())
        assert len((folder / "extra.bin").read_bytes()) == EXTRA
        assert (folder / "expert.safetensors").is_file()
    assert len(contents) == len(versions)
    return versions


def check_runs(root, registry):
    """One run for each expert that was begun; what was registered has its losses and its test result."""
    experts = [run for run in runs(root) if run.data.tags["ttmoe.kind"] == "expert"]
    assert max(Counter(run.data.tags["ttmoe.task"] for run in experts).values()) == 1
    for run in experts:
        if run.info.status == "FINISHED":
            assert run.data.metrics["test.accuracy"] == 0.5
            assert run.data.metrics["train.loss"] == pytest.approx(1 / STEPS)
        else:
            assert run.data.tags["ttmoe.error"]
    for task in ("t0000", "t0009"):  # one that went well, and one whose process died once
        (run,) = [run for run in experts if run.data.tags["ttmoe.task"] == task]
        steps = {metric.step for metric in registry.client.get_metric_history(run.info.run_id, "train.loss")}
        assert steps == set(range(1, STEPS + 1))
