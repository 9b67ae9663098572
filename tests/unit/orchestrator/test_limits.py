"""A run ends when it has taken its hours or its GPU hours, wherever it waits, and in no other case."""

from __future__ import annotations

import time

import pytest

from orchestrator.config.runtime_sections import LimitSettings
from orchestrator.pool.capacity import JobResources
from orchestrator.pool.ray_workers import WorkerHandle
from orchestrator.run import limits
from orchestrator.run.limits import RunLimits
from ttmoe.errors import LimitReachedError

LONG = 30.0  # seconds; a limit that does not interrupt makes a test wait for them


@pytest.mark.parametrize(
    ("settings", "gpu_hours", "key"),
    [({"hours": 1e-5}, 0, "limits.hours"), ({"gpu_hours": 4}, 4, "limits.gpu_hours")],
)
def test_a_limit_interrupts_what_the_run_waits_for(settings, gpu_hours, key, monkeypatch):
    monkeypatch.setattr(limits, "_POLL_SECONDS", 0.02)
    ended = []

    def run():
        with RunLimits(LimitSettings(**settings)).keep() as used:
            used.gpu_seconds = lambda: gpu_hours * 3600
            try:
                time.sleep(LONG)
                ended.append("too late")
            finally:
                ended.append("in order")

    with pytest.raises(LimitReachedError) as caught:
        run()
    assert (ended, caught.value.where, caught.value.code) == (["in order"], key, 5)


@pytest.mark.parametrize("settings", [{}, {"hours": 1, "gpu_hours": 5}])
def test_below_its_limits_a_run_is_left_alone(settings, monkeypatch):
    monkeypatch.setattr(limits, "_POLL_SECONDS", 0.02)
    with RunLimits(LimitSettings(**settings)).keep() as used:
        used.gpu_seconds = lambda: 4.9 * 3600
        time.sleep(0.3)
    with pytest.raises(KeyboardInterrupt), RunLimits(LimitSettings(**settings)).keep():  # by the user
        raise KeyboardInterrupt


def test_a_worker_counts_its_gpus_from_its_start():
    worker = WorkerHandle(None, None, resources=JobResources(1, 0.5))
    assert worker.gpu_seconds == 0
    worker.started = time.monotonic() - 100
    assert worker.gpu_seconds == pytest.approx(50, abs=5)
