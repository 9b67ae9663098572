"""What the pool does with a job after a failure, on a cluster of scripted workers with a clock of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import NodeDiedError, RayActorError, RayError, RayTaskError

from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.pool import unit_queue, worker_pool
from orchestrator.pool.capacity import JobResources, Node
from orchestrator.pool.device_record import DeviceRecord, WorkerDevice
from orchestrator.pool.failure_policy import common_failure
from orchestrator.pool.ray_workers import WorkerHandle, WorkerStarted
from orchestrator.pool.work_units import WorkUnit
from orchestrator.pool.worker_actor import UnitEnded
from orchestrator.pool.worker_failure import failure_from_ray
from orchestrator.pool.worker_pool import WorkerPool
from ttmoe.errors import WorkFailedError
from workers.failure import Failure

BROKEN = Failure("device", "AcceleratorError", "CUDA error: device-side assert triggered")
LOST = Failure("lost", "NodeLost", "node id left the cluster")
CODE = Failure("code", "ValueError", "no")
SETTINGS = ({}, {"autoscaling": True, "max_workers": 2})  # a pool that starts workers for which there is no room yet


class ScriptedCluster:
    """A node with GPUs, on which a unit takes one second and a worker starts at once if a GPU is free.

    Args:
        gpus: Number of GPUs.
        outcome: Returns the outcome of a job on a GPU: ``outcome(gpu, key)``. LOST ends its process and the unit.
        taken: GPUs that another driver has.
        share: Workers on one GPU.
        slow: Seconds that a job takes longer, by key.
        apart: Each GPU is in a node of its own.
    """

    def __init__(self, gpus, outcome, *, taken=(), share=1, slow=None, apart=False):
        self.apart = apart
        self.gpus, self.share, self.outcome, self.slow, self.now = gpus, share, outcome, Counter(slow), 0.0
        self.holders = dict.fromkeys(taken, "another driver")  # by place: the GPU if it is not shared
        self.log, self.most_busy = [], 0  # pairs of GPU and job; units at the same time

    def start_worker(self, resources):
        actor = SimpleNamespace(
            run=SimpleNamespace(remote=lambda unit, channel: object()), wait=SimpleNamespace(remote=object)
        )
        return WorkerHandle(actor, object(), changed=self.now)

    def kill(self, actor):
        self.holders = {gpu: holder for gpu, holder in self.holders.items() if holder is not actor}

    def events(self, workers, timeout):
        self.now += 1
        self.most_busy = max(self.most_busy, sum(worker.unit is not None for worker in workers))
        for worker in list(workers):
            free = [place for place in range(self.gpus * self.share) if place not in self.holders]
            if worker.device is None and free:
                self.holders[free[0]], worker.ref = worker.actor, None
                gpu = free[0] // self.share
                node = ("id", "10.0.0.1") if not self.apart else (f"id{gpu}", f"10.0.0.{gpu + 1}")
                yield worker, WorkerStarted(WorkerDevice(*node, (str(gpu),)))
            elif worker.unit:
                gpu, (key,) = int(worker.device.gpus[0]), worker.unit.jobs
                self.slow[key] -= 1
                if self.slow[key] < 0:
                    self.log.append((gpu, key))
                    outcome = self.outcome(gpu, key)
                    yield worker, RayError() if outcome is LOST else UnitEnded({key: outcome}, [])
        assert self.now < 1000, "the pool hangs"


@pytest.fixture
def run(monkeypatch):
    """A function that runs jobs on a cluster, and returns their events and the pool."""

    def run(cluster, jobs, **settings):
        clock = SimpleNamespace(monotonic=lambda: cluster.now)
        nodes = [Node("10.0.0.1", 8, cluster.gpus, 10**9)]
        if cluster.apart:
            nodes = [Node(f"10.0.0.{gpu + 1}", 8, 1, 10**9) for gpu in range(cluster.gpus)]
        monkeypatch.setattr(unit_queue, "time", clock)
        for name, value in (("time", clock), ("start_worker", cluster.start_worker), ("kill_actor", cluster.kill),
                            ("end_worker", lambda worker: cluster.kill(worker.actor)),
                            ("wait_for_events", cluster.events), ("cluster_nodes", lambda: nodes),
                            ("failure_from_ray", lambda error, node: LOST),
                            ("drain_progress", lambda channel: [])):  # fmt: skip
            monkeypatch.setattr(worker_pool, name, value)
        pool = WorkerPool(JobResources(gpus=1 / cluster.share), FailureSettings(), stall_seconds=10**6, **settings)
        events = []
        try:
            for event in pool.run([WorkUnit(print, {job: None}, Path("log.txt")) for job in jobs]):
                events += [event] if event else []
        except WorkFailedError as error:
            events.append(error)
        return events, pool

    return run


def broken(*gpus):
    return lambda gpu, key: BROKEN if gpu in gpus else "fine"


def fails_once(key):
    attempts = Counter()

    def outcome(gpu, job):
        attempts[job] += 1
        return BROKEN if job == key and attempts[job] == 1 else "fine"

    return outcome


def results(events):
    return {event.key: event.result for event in events if event.done}


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_broken_device_is_left_out_after_two_jobs_and_all_jobs_are_done(run, settings):
    cluster, jobs = ScriptedCluster(2, broken(0)), [str(i) for i in range(40)]
    events, pool = run(cluster, jobs, **settings)
    assert results(events) == dict.fromkeys(jobs, "fine")
    first, second = (event for event in events if event.failure)
    assert first.failure.message == "on GPU 0 of node 10.0.0.1: CUDA error: device-side assert triggered"
    assert second.failure.message.startswith("on GPU 0 of node 10.0.0.1, which gets no more work: CUDA error: ")
    assert first.action == second.action == "retried in 1 s: device failed"
    assert first.key != second.key
    reserved = [worker.device.gpus for worker in pool.workers if worker.device and worker.ref]
    assert reserved == [("0",)]  # without work


def test_a_worker_that_kept_a_broken_device_reserved_and_died_is_replaced(run):
    cluster, died = ScriptedCluster(2, broken(0)), []
    events = cluster.events

    def with_a_death(workers, timeout):
        for worker in [each for each in workers if each.device and each.ref and not each.unit and not died]:
            died.append(worker.actor)
            yield worker, RayError()
        yield from events(workers, timeout)

    cluster.events = with_a_death
    jobs = [str(i) for i in range(20)]
    ended, pool = run(cluster, jobs)
    assert results(ended) == dict.fromkeys(jobs, "fine")
    (reserved,) = [worker for worker in pool.workers if worker.ref]
    assert died
    assert reserved.device.gpus == ("0",)
    assert reserved.actor is not died[0]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_run_stops_when_every_device_is_left_out(run, settings):
    cluster = ScriptedCluster(2, broken(0, 1))
    *events, error = run(cluster, "abcdefgh", **settings)[0]
    assert str(error).startswith(
        "the cluster: two jobs in a row failed on every device: GPU 0 of node 10.0.0.1, GPU 1 of node 10.0.0.1; "
        "AcceleratorError: on GPU "
    )
    assert "device-side assert triggered" in str(error)
    assert len([event for event in events if event.failure]) == 4
    assert not any(event.done for event in events)


def test_a_job_is_retried_on_another_device(run):
    cluster = ScriptedCluster(3, broken(0, 1))
    events, _ = run(cluster, "a")
    assert cluster.log == [(0, "a"), (1, "a"), (2, "a")]
    assert results(events) == {"a": "fine"}


def test_a_job_waits_for_a_device_that_is_busy_rather_than_fail_again_on_the_broken_one(run):
    cluster = ScriptedCluster(2, lambda gpu, key: BROKEN if (gpu, key) == (0, "a") else "fine", slow={"b": 5})
    assert results(run(cluster, "ab")[0]) == {"a": "fine", "b": "fine"}
    assert cluster.log == [(0, "a"), (1, "b"), (1, "a")]


def test_without_another_device_a_job_is_retried_on_the_same_one(run):
    cluster = ScriptedCluster(1, fails_once("a"))
    assert results(run(cluster, "a")[0]) == {"a": "fine"}
    assert cluster.log == [(0, "a"), (0, "a")]


def test_a_device_that_another_driver_has_is_not_waited_for(run):
    """Its worker may start in hours; until a minute has passed, it may be that its process takes long to start."""
    cluster = ScriptedCluster(2, fails_once("a"), taken=(1,))
    assert results(run(cluster, "a")[0]) == {"a": "fine"}
    assert cluster.log == [(0, "a"), (0, "a")]
    assert cluster.now > 60


def test_a_unit_that_still_runs_on_a_device_that_is_left_out_is_awaited(run):
    """Two processes share the GPU, and only one has lost it."""
    cluster = ScriptedCluster(1, lambda gpu, key: "fine" if key == "a" else BROKEN, share=2, slow={"a": 30})
    *events, error = run(cluster, "abcd")[0]
    assert results(events) == {"a": "fine"}
    assert "two jobs in a row failed on every device: GPU 0 of node 10.0.0.1; " in str(error)


def test_a_job_that_fails_wherever_it_runs_leaves_out_no_device(run):
    cluster = ScriptedCluster(2, lambda gpu, key: BROKEN if key == "a" else "fine")
    events, pool = run(cluster, "abc")
    last = {event.key: event for event in events if event.done}
    assert (last["a"].failure.kind, last["a"].attempt) == ("device", 4)
    assert {key: last[key].result for key in "bc"} == dict.fromkeys("bc", "fine")
    assert pool.devices.left_out == set()


def test_a_reserved_device_takes_no_place_of_max_workers(run):
    cluster = ScriptedCluster(2, broken(0))
    assert results(run(cluster, "abcd", max_workers=1)[0]) == dict.fromkeys("abcd", "fine")
    assert cluster.most_busy == 1


def test_a_worker_that_was_added_for_one_job_does_not_exceed_max_workers_later(run):
    cluster = ScriptedCluster(2, fails_once("a"))
    events, pool = run(cluster, "a", max_workers=1)
    events += [event for event in pool.run([WorkUnit(print, {job: None}, Path("log.txt")) for job in "bcd"]) if event]
    assert results(events) == dict.fromkeys("abcd", "fine")
    assert cluster.most_busy == 1


def test_a_job_that_loses_its_node_again_and_again_is_given_up_while_others_go_on(run):
    cluster = ScriptedCluster(2, lambda gpu, key: LOST if key == "a" else "fine")
    events, _ = run(cluster, "abc")
    last = {event.key: event for event in events if event.done}
    assert (last["a"].failure, last["a"].attempt, last["a"].action) == (LOST, 9, "not retried: node lost")
    assert {key: last[key].result for key in "bc"} == dict.fromkeys("bc", "fine")
    delays = [event.retry.delay for event in events if event.retry]
    assert delays == [1, 5, 20, 60, 60, 60, 60, 60]
    assert cluster.now > sum(delays)


def test_errors_of_the_code_on_one_node_are_not_failures_of_the_jobs(run):
    """A package is missing on one node: its jobs run on another one, and the stage is not stopped."""
    cluster, jobs = ScriptedCluster(2, lambda gpu, key: CODE if gpu == 0 else "fine", apart=True), "abcdefgh"
    events, _ = run(cluster, jobs)
    assert results(events) == dict.fromkeys(jobs, "fine")
    failures = [event for event in events if event.failure]
    assert {event.action for event in failures} == {"retried on another node in 1 s: error in the code or the data"}
    assert len(failures) >= 3
    assert common_failure([event.failure for event in events if event.done], FailureSettings()) is None


@pytest.mark.parametrize(("apart", "attempts"), [(True, 2), (False, 1)])
def test_an_error_of_the_code_on_every_node_is_the_jobs_own(run, apart, attempts):
    cluster = ScriptedCluster(2, lambda gpu, key: CODE if key == "a" else "fine", apart=apart)
    last = {event.key: event for event in run(cluster, "abc")[0] if event.done}
    assert (last["a"].failure, last["a"].attempt) == (CODE, attempts)
    assert len({gpu for gpu, key in cluster.log if key == "a"}) == attempts
    assert {key: last[key].result for key in "bc"} == dict.fromkeys("bc", "fine")


def test_preemption_is_told_from_other_losses_of_a_node():
    errors = RayActorError(None, "drained", False, True), NodeDiedError("gone")
    found = [failure_from_ray(error, "id") for error in errors]
    assert [(failure.kind, failure.preempted) for failure in found] == [("lost", True), ("lost", False)]


def test_a_unit_that_a_worker_cannot_read_fails_with_one_line():
    trace = "Traceback (most recent call last):\n  File \"x.py\", line 1\nModuleNotFoundError: No module named 'mine'\n"
    failure = failure_from_ray(RayTaskError("Worker.run", trace, ValueError()), "id")
    assert (failure.kind, failure.message) == ("code", "ModuleNotFoundError: No module named 'mine'")
    assert 'File "x.py", line 1' in failure.trace


def test_only_failures_of_the_device_without_a_success_between_count():
    device, record = WorkerDevice("id", "10.0.0.1", ("0",)), DeviceRecord()
    for outcomes in ({"a": BROKEN}, {"b": "fine"}, {"c": BROKEN}, {"d": CODE}, {"c": BROKEN}):
        record.add(device, outcomes)
    assert record.left_out == set()
    assert record.add(device, {"e": BROKEN, "f": CODE})["f"] == CODE
    assert record.left_out == {device}


def test_jobs_of_one_unit_count_once():
    device, record = WorkerDevice("id", "10.0.0.1", ("0",)), DeviceRecord()
    record.add(device, {"a": BROKEN, "b": BROKEN})
    record.add(device, {"a": BROKEN})
    assert record.left_out == set()
    assert record.rules_out(device, ["b", "x"])
    assert not record.rules_out(device, ["x"])
    record.add(device, {"c": BROKEN})
    assert record.left_out == {device}


@pytest.mark.parametrize(
    ("gpus", "text"),
    [(("0",), "GPU 0 of node 10.0.0.1"), (("2", "3"), "GPUs 2, 3 of node 10.0.0.1"), ((), "node 10.0.0.1")],
)
def test_a_device_is_named_with_its_node(gpus, text):
    assert str(WorkerDevice("id", "10.0.0.1", gpus)) == text
