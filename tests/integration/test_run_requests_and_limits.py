"""A run of which a user leaves an expert out, and one that reaches a limit: what is recorded, and how it ends."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from commands import here, statuses, versions
from killed_driver import InlinePool, units_inline
from scripted_jobs import write_library

from orchestrator.pool.job_requests import SKIPPED
from orchestrator.pool.work_units import JobEvent
from orchestrator.run import limits

pytestmark = pytest.mark.integration


@pytest.fixture
def home(base_folder: Path, fresh_store: Path, tmp_path: Path) -> Path:
    """A folder with the config many.yaml of two tasks."""
    (tmp_path / "runs").mkdir()
    shutil.copy(fresh_store, tmp_path / "runs")
    write_library(tmp_path, base_folder, 2)
    return tmp_path


def test_the_router_does_not_wait_for_an_expert_that_was_left_out(home):
    """By default it requires all experts; the next run trains the one that is missing."""

    class Skipping(InlinePool):
        def run(self, units, *arguments, **options):
            for event in super().run(units, *arguments, **options):
                if event.key == "t0001" and event.done:
                    event = JobEvent("t0001", failure=SKIPPED, action="left out", done=True)
                yield event

    with units_inline(Skipping):
        done = here(home, "run", "many.yaml")
    assert done.code == 4, done.err
    assert "1 of 2 experts failed (t0001: Skipped: on request); the router serves the other 1" in " ".join(
        done.err.split()
    )
    assert versions(home / "runs") == {"many.t0000": 1, "many.router": 1}
    with units_inline():
        assert here(home, "run", "many.yaml").code == 0
    assert versions(home / "runs") == {"many.t0000": 1, "many.t0001": 1, "many.router": 2}


def test_the_gpu_hours_of_the_pool_end_the_run_and_close_what_is_open(home, monkeypatch):
    class Expensive(InlinePool):
        def gpu_seconds(self):
            return 2 * 3600.0

        def run(self, units, *arguments, **options):
            time.sleep(60)  # the limit ends it
            yield None

    monkeypatch.setattr(limits, "_POLL_SECONDS", 0.05)
    with units_inline(Expensive):
        done = here(home, "run", "many.yaml", "--set", "limits.gpu_hours=1.5")
    assert (done.code, done.err.splitlines()[:2]) == (
        5,
        ["error: limits.gpu_hours", "  the limit of 1.5 GPU hours is reached"],
    )
    assert statuses(home / "runs") == {("run", "KILLED"): 1}
