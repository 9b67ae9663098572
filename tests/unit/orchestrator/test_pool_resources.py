"""What the workers of each call reserve, on a scripted cluster where units end at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.pool import unit_queue, worker_pool
from orchestrator.pool.capacity import GB, JobResources, Node, serves
from orchestrator.pool.device_record import WorkerDevice
from orchestrator.pool.ray_workers import WorkerHandle, WorkerStarted
from orchestrator.pool.work_units import WorkUnit
from orchestrator.pool.worker_actor import UnitEnded
from orchestrator.pool.worker_pool import WorkerPool
from ttmoe.errors import InfeasibleError
from workers.failure import Failure

EXPERT = JobResources(1, 0, 2 * GB)
LARGE = JobResources(8, 0, 6 * GB)  # needs more memory than an expert
SMALL = JobResources(8, 0, 1 * GB)


class Cluster:
    """A node of 8 cores and 10 GB on which other work has ``taken`` cores."""

    def __init__(self, taken=0):
        self.taken, self.now, self.workers, self.ran = taken, 0.0, [], []

    def start(self, resources):
        actor = SimpleNamespace()
        actor.run = SimpleNamespace(remote=lambda unit, channel: self.ran.append((actor.resources, unit)) or object())
        actor.resources = resources
        self.workers.append(actor)
        return WorkerHandle(actor, object(), changed=self.now, resources=resources)

    def kill(self, actor):
        self.workers = [worker for worker in self.workers if worker is not actor]

    def events(self, workers, timeout):
        self.now += 1
        assert self.now < 2000, "the pool waits for ever"
        for worker in list(workers):
            used = sum(each.resources.cpus for each in self.workers if getattr(each, "started", False))
            if worker.device is None and used + worker.resources.cpus <= 8 - self.taken:
                worker.actor.started = True
                yield worker, WorkerStarted(WorkerDevice("node"))
            elif worker.unit:
                yield worker, UnitEnded(dict.fromkeys(worker.unit.jobs, "done"), [])


@pytest.fixture
def pool_on(monkeypatch):
    def make(cluster, **settings):
        clock = SimpleNamespace(monotonic=lambda: cluster.now)
        nodes = [Node("10.0.0.1", 8, 0, 10 * GB)]
        for name, value in (("time", clock), ("start_worker", cluster.start), ("kill_actor", cluster.kill),
                            ("end_worker", lambda worker: cluster.kill(worker.actor)),
                            ("wait_for_events", cluster.events), ("cluster_nodes", lambda: nodes),
                            ("drain_progress", lambda channel: [])):  # fmt: skip
            monkeypatch.setattr(worker_pool, name, value)
        said = []
        pool = WorkerPool(EXPERT, FailureSettings(), stall_seconds=10**6, notify=said.append, **settings)
        pool.said = said
        return pool

    return make


def run(pool, count=1, resources=None, **options):
    units = [WorkUnit.of(str(i), print, (), Path("folder"), threads=1) for i in range(count)]
    if options.get("all_cores"):
        units = [WorkUnit(unit.run, unit.jobs, unit.log, all_cores=True) for unit in units]
    ends = [event for event in pool.run(units, None, resources) if event and event.done]
    assert [event.result for event in ends] == ["done"] * count


def reserved(cluster):
    return [worker.resources for worker in cluster.workers]


def test_d19_a_job_that_needs_more_memory_gets_a_worker_that_has_reserved_it(pool_on):
    cluster = Cluster()
    pool = pool_on(cluster)
    run(pool, 4)
    assert reserved(cluster) == [EXPERT] * 4
    run(pool, 1, LARGE, all_cores=True)
    assert reserved(cluster) == [LARGE]
    resources, unit = cluster.ran[-1]
    assert resources == LARGE
    assert unit.jobs["0"][1]["threads"] == 8
    run(pool, 4)  # the cores of the large worker are free again
    assert reserved(cluster) == [EXPERT] * 4


def test_d19_a_job_that_needs_less_runs_where_it_is_with_the_cores_of_the_idle_workers(pool_on):
    """A worker that stays keeps what it has loaded; the others of its node have nothing to do meanwhile."""
    cluster = Cluster()
    pool = pool_on(cluster)
    run(pool, 3)
    run(pool, 1, SMALL, all_cores=True)
    assert reserved(cluster) == [EXPERT] * 3
    assert cluster.ran[-1][1].jobs["0"][1]["threads"] == 3


def test_d19_without_workers_the_job_gets_what_it_asks_for(pool_on):
    cluster = Cluster()
    run(pool_on(cluster), 1, SMALL, all_cores=True)
    assert reserved(cluster) == [SMALL]
    assert cluster.ran[-1][1].jobs["0"][1]["threads"] == 8


def test_d18_feature_jobs_share_the_workers_of_experts_only_if_those_reserve_enough(pool_on):
    cluster = Cluster()
    pool = pool_on(cluster)
    run(pool, 3)
    first = list(cluster.workers)
    run(pool, 3, JobResources(1, 0, GB))
    assert cluster.workers == first
    run(pool, 3, JobResources(1, 0, 3 * GB))
    assert reserved(cluster) == [JobResources(1, 0, 3 * GB)] * 3


def test_d19_a_job_does_not_wait_for_cores_that_other_work_keeps(pool_on):
    cluster = Cluster(taken=5)
    pool = pool_on(cluster)
    run(pool, 1, LARGE, all_cores=True)
    assert [resources.cpus for resources in reserved(cluster)] == [2]
    assert cluster.ran[-1][1].jobs["0"][1]["threads"] == 2
    assert [text.partition(":")[0] for text in pool.said] == ["no node has 8 free CPUs", "no node has 4 free CPUs"]


def test_d19_what_no_node_has_is_refused_rather_than_awaited(pool_on):
    with pytest.raises(InfeasibleError, match=r"a job requires 1 CPUs, 0 GPUs, 20\.0 GB of memory"):
        run(pool_on(Cluster()), 1, JobResources(8, 0, 20 * GB))
    run(pool_on(Cluster()), 1, JobResources(16, 0, GB))  # cores are a wish


def test_d19_a_worker_that_keeps_a_broken_device_does_not_keep_the_cores_of_a_job_without_gpus(pool_on):
    cluster = Cluster()
    pool = pool_on(cluster)
    run(pool, 2)
    pool.devices.left_out.add(WorkerDevice("node"))
    pool._reserve(SMALL, alone=True)
    assert reserved(cluster) == []


@pytest.mark.parametrize(
    ("has", "needs", "alone", "expected"),
    [(EXPERT, EXPERT, False, True), (EXPERT, SMALL, False, False), (EXPERT, SMALL, True, True),
     (EXPERT, JobResources(1, 0, int(2.1 * GB)), True, True),
     (EXPERT, LARGE, True, False), (LARGE, EXPERT, False, False), (LARGE, EXPERT, True, True),
     (EXPERT, JobResources(1, 1, GB), True, False), (JobResources(1, 1, GB), JobResources(1, 0, GB), True, True)],
)  # fmt: skip
def test_d19_which_worker_serves_a_job(has, needs, alone, expected):
    assert serves(has, needs, alone=alone) == expected


def finish(kinds, reduce_memory):
    """The job of the last retry after failures of these kinds."""
    failures, job, unit = [], 8, WorkUnit(print, {"a": 8}, Path("log.txt"))
    for kind in kinds:
        event, retry = unit_queue.finish_job(unit, "a", job, Failure(kind, "E", "m"), failures, FailureSettings(),
                                             reduce_memory)  # fmt: skip
        job = retry and retry.unit.jobs["a"]
    return job, event.action


def half(rows):
    return rows // 2 or None


def test_d18_a_process_that_dies_again_is_tried_with_half_and_one_that_cannot_be_halved_as_it_is():
    assert finish(["died"], half)[0] == 8
    assert finish(["died", "died"], half) == (4, "retried in smaller batches in 5 s: worker process died")
    assert finish(["died", "died", "died"], half)[0] == 2
    assert finish(["died", "died"], None) == (8, "retried in 5 s: worker process died")
    assert finish(["memory"], half)[0] == 4
    assert finish(["memory", "memory"], half) == (None, "not retried: out of memory")
    assert finish(["memory"], lambda job: None)[0] is None
