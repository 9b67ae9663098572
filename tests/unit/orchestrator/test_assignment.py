"""The order in which the pool assigns units and yields events, with workers that finish at every poll."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.pool import worker_pool
from orchestrator.pool.capacity import JobResources
from orchestrator.pool.device_record import WorkerDevice
from orchestrator.pool.ray_workers import UnitEnded, WorkerHandle, WorkerStarted
from orchestrator.pool.work_units import WorkUnit
from orchestrator.pool.worker_pool import WorkerPool
from workers.failure import Failure
from workers.progress import Progress


@pytest.fixture
def pool(monkeypatch):
    """A pool of one worker; ``log`` lists the assignments, ``ends`` says how each unit ends."""
    pool = WorkerPool(JobResources(), FailureSettings(retries=0), max_workers=1)
    pool.log, pool.ends = [], {}

    def assign(unit, channel):
        (key,) = unit.jobs
        pool.log.append(f"assign {key}")
        return object()

    def events(workers, timeout):
        for worker in list(workers):
            if worker.device is None:
                yield worker, WorkerStarted(WorkerDevice("node"))
            elif worker.unit:
                (key,) = worker.unit.jobs
                yield worker, UnitEnded({key: pool.ends.get(key, "result")}, [(key, 0.0, Progress("testing"))])

    actor = SimpleNamespace(run=SimpleNamespace(remote=assign))
    monkeypatch.setattr(worker_pool, "start_worker", lambda resources: WorkerHandle(actor, object()))
    monkeypatch.setattr(worker_pool, "wait_for_events", events)
    monkeypatch.setattr(worker_pool, "cluster_nodes", list)
    monkeypatch.setattr(worker_pool, "drain_progress", lambda channel: [])
    monkeypatch.setattr(worker_pool, "kill_actor", lambda actor: None)
    return pool


def log_of(pool):
    units = [WorkUnit(print, {key: None}, Path("log.txt")) for key in "ab"]
    for event in pool.run(units):
        if event:
            pool.log.append(f"{'end' if event.done else event.progress[0][1].state} {event.key}")
    return pool.log


def test_a_worker_gets_its_next_unit_before_the_events_of_the_last_are_processed(pool):
    assert log_of(pool) == ["assign a", "assign b", "testing a", "end a", "testing b", "end b"]


def test_after_a_failure_the_events_come_first(pool):
    """They may stop the run, or retry the job before the units that have not started."""
    pool.ends["a"] = Failure("code", "ValueError", "no")
    assert log_of(pool) == ["assign a", "testing a", "end a", "assign b", "testing b", "end b"]
