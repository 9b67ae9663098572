"""The one outcome of a job that several processes ran together."""

from __future__ import annotations

import pytest
import ray

from orchestrator.pool import worker_group
from orchestrator.pool.capacity import JobResources, Node, jobs_on_node, max_parallel_jobs, require_fits, serves
from orchestrator.pool.device_record import WorkerDevice
from orchestrator.pool.worker_group import WorkerGroup, merge_outcomes
from ttmoe.errors import InfeasibleError
from workers.failure import Failure

DEVICES = [WorkerDevice("a", "10.0.0.1", ("0",)), WorkerDevice("b", "10.0.0.2", ("0",))]
DEAD, RESET = Failure("died", "ActorDiedError", "killed"), Failure("system", "DistBackendError", "connection reset")


def test_a_job_that_all_processes_finished_has_the_result_of_the_first():
    assert merge_outcomes(["job"], {0: {"job": "first"}, 1: {"job": "second"}}, DEVICES) == {"job": "first"}


@pytest.mark.parametrize("first", [True, False])
def test_the_cause_of_a_failure_is_reported_not_what_follows_from_it(first):
    outcomes = [DEAD, {"job": RESET}] if first else [{"job": RESET}, DEAD]
    merged = merge_outcomes(["job"], dict(enumerate(outcomes)), DEVICES)["job"]
    assert merged.kind == "died"
    assert merged.message == f"process {0 if first else 1} of 2, {DEVICES[not first]}: killed"


def test_a_process_that_has_not_ended_has_no_part_in_the_outcome():
    merged = merge_outcomes(["a", "b"], {1: {"a": RESET, "b": RESET}}, DEVICES)
    assert {failure.kind for failure in merged.values()} == {"system"}


def test_one_of_several_jobs_may_fail():
    results = {rank: {"good": rank, "bad": Failure("code", "DivergedError", "nan")} for rank in (0, 1)}
    merged = merge_outcomes(["good", "bad"], results, DEVICES)
    assert merged["good"] == 0
    assert merged["bad"].message.endswith("nan")


def test_a_failure_is_looked_up_on_the_node_of_its_own_process(monkeypatch):
    asked = []
    monkeypatch.setattr(worker_group, "failure_from_ray", lambda error, node: asked.append(node) or DEAD)

    def lost(ref):
        raise ray.exceptions.RayActorError

    monkeypatch.setattr(worker_group.ray, "get", lost)
    group = WorkerGroup.__ray_metadata__.modified_class
    assert [group._outcome(None, ref, device.node) for ref, device in enumerate(DEVICES)] == [DEAD, DEAD]
    assert asked == ["a", "b"]


def test_each_process_of_a_group_has_a_place_with_all_that_one_reserves(monkeypatch):
    asked = {}
    group = lambda bundles, **more: asked.update(bundles=bundles, **more)  # noqa: E731
    monkeypatch.setattr(worker_group.ray.util, "placement_group", group)
    job = JobResources(4, 1, 10**9, "H100", (("zone", "a"),), processes=3)
    worker_group.reserve_group(job)
    bundle = {"CPU": 4, "GPU": 1, "memory": 10**9, "accelerator_type:H100": 0.001}
    assert asked == {"bundles": [bundle] * 3, "strategy": "PACK", "bundle_label_selector": [{"zone": "a"}] * 3}
    worker_group.reserve_group(JobResources(0.5, processes=2))
    assert asked == {"bundles": [{"CPU": 0.5}] * 2, "strategy": "PACK", "bundle_label_selector": None}


def test_the_device_of_a_group_names_the_gpus_of_all_its_nodes():
    devices = [WorkerDevice("a", "10.0.0.1", ("0",)), WorkerDevice("a", "10.0.0.1", ("3",)),
               WorkerDevice("b", "10.0.0.2", ("0",))]  # fmt: skip
    assert worker_group._device_of_all(devices) == WorkerDevice("a", "10.0.0.1", ("0", "3", "10.0.0.2/0"))


def test_a_group_needs_room_for_all_its_processes_on_any_nodes():
    nodes = [Node("one", 8, 2, 10**9), Node("two", 8, 3, 10**9)]
    pair = JobResources(cpus=1, gpus=1, processes=2)
    assert [jobs_on_node(node, pair) for node in nodes] == [2, 3]
    assert max_parallel_jobs(nodes, pair) == 2
    assert max_parallel_jobs(nodes, JobResources(cpus=1, gpus=1, processes=5)) == 1
    require_fits(nodes, JobResources(cpus=1, gpus=1, processes=5), "an expert")
    with pytest.raises(
        InfeasibleError, match=r"each process of an expert requires 1 CPUs, 1 GPUs, .* room for 5 of its 6"
    ):
        require_fits(nodes, JobResources(cpus=1, gpus=1, processes=6), "an expert")
    assert not serves(pair, JobResources(cpus=1, gpus=1), alone=True)
