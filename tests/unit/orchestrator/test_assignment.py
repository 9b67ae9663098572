"""The order in which the pool assigns units and yields events, with workers that finish at every poll."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.pool import worker_pool
from orchestrator.pool.capacity import JobResources, Node
from orchestrator.pool.device_record import WorkerDevice
from orchestrator.pool.ray_workers import WorkerHandle, WorkerStarted, failed_node
from orchestrator.pool.work_units import WorkUnit
from orchestrator.pool.worker_actor import UnitEnded
from orchestrator.pool.worker_pool import WorkerPool
from ttmoe.errors import WorkFailedError
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
    monkeypatch.setattr(worker_pool, "end_worker", lambda worker: None)
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


@pytest.fixture
def two_nodes(pool, monkeypatch):
    """A pool on two nodes: the first worker starts, and each other one ends before it does, as ``pool.fails`` says."""
    pool.requested, pool.said, pool.fails, pool.max_workers = [], [], True, 4
    pool.notify = pool.said.append
    pool.nodes = [Node("10.0.0.1", 2, 0, 0), Node("10.0.0.2", 2, 0, 0)]
    start, events = worker_pool.start_worker, worker_pool.wait_for_events

    def request(resources):
        worker = start(resources)
        pool.requested.append(worker)
        return worker

    def failing(workers, timeout):
        for worker in list(workers):
            if worker.device is None and worker is not pool.requested[0] and pool.fails:
                yield worker, RuntimeError("The actor died\n\tpid: 7\n\tip: 10.0.0.2\nNo module named 'ttmoe'")
            else:
                yield from events([worker], timeout)

    monkeypatch.setattr(worker_pool, "start_worker", request)
    monkeypatch.setattr(worker_pool, "wait_for_events", failing)
    monkeypatch.setattr(worker_pool, "cluster_nodes", lambda: pool.nodes)
    return pool


def run_units(pool, count):
    return [event.key for event in pool.run([WorkUnit(print, {str(i): None}, Path("log.txt")) for i in range(count)])
            if event and event.done]  # fmt: skip


def test_a_node_on_which_no_worker_starts_is_named_once_and_asked_no_more(two_nodes):
    assert len(run_units(two_nodes, 30)) == 30
    assert len(two_nodes.requested) == 4  # not one more after the first three have failed
    (message,) = two_nodes.said
    assert "3 on 10.0.0.2" in message
    assert "No module named 'ttmoe'" in message
    assert "the run goes on with 1 workers" in message


def test_a_node_that_joins_gets_workers(two_nodes, monkeypatch):
    run_units(two_nodes, 30)
    two_nodes.nodes, two_nodes.fails = [*two_nodes.nodes, Node("10.0.0.3", 2, 0, 0)], False
    monkeypatch.setattr(worker_pool, "NODE_COUNT_INTERVAL", -1)
    run_units(two_nodes, 30)
    assert len(two_nodes.workers) == 4


def test_without_any_worker_that_starts_the_run_ends(two_nodes):
    two_nodes.requested.append(None)  # so that the first one fails too
    with pytest.raises(WorkFailedError, match=r"3 on 10\.0\.0\.2"):
        run_units(two_nodes, 5)


@pytest.mark.parametrize(
    ("text", "node"),
    [("died\n\tip: 10.0.0.2\n", "10.0.0.2"), ("ray::_Worker.__init__() (pid=1, ip=10.0.0.3, actor_id=2)", "10.0.0.3"),
     ("the chip: 5", "an unknown node"), ("", "an unknown node")],
)  # fmt: skip
def test_rays_error_tells_the_node(text, node):
    assert failed_node(RuntimeError(text)) == node
