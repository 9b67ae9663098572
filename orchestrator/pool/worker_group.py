"""A group of worker processes that run each unit together, behind the interface of one worker.

An actor without resources watches the members and answers for them: it has one result and one failure for all. Members
stay alive between units and keep the base, or their parts of it. If one of them ends, the others would wait for it in
a collective; the driver then ends the group and starts another.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.pool.capacity import JobResources
from orchestrator.pool.device_record import WorkerDevice
from orchestrator.pool.work_units import WorkUnit
from orchestrator.pool.worker_actor import UnitEnded, Worker
from orchestrator.pool.worker_failure import failure_from_ray
from workers.failure import Failure

# Seconds to wait for the other members after one has failed: they fail by the same error, or of its absence, and the
# cause is to be reported.
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.2
# Which failure of several members is the cause. A lost member lets others fail by errors of the network.
_CAUSES = ("lost", "died", "device", "memory", "code", "system", "stalled", "skipped", "stopped")


def reserve_group(resources: JobResources) -> Any:
    """Return a placement group with room for each process, on as few nodes as possible."""
    bundle = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory}
    if resources.accelerator_type:
        bundle[f"accelerator_type:{resources.accelerator_type}"] = 0.001
    bundles = [{name: amount for name, amount in bundle.items() if amount}] * resources.processes
    labels = [dict(resources.labels)] * resources.processes if resources.labels else None
    return ray.util.placement_group(bundles, strategy="PACK", bundle_label_selector=labels)


@ray.remote(num_cpus=0, max_restarts=0)
class WorkerGroup:
    """A group with the interface of ``Worker``.

    Args:
        reservation: The placement group.
        resources: What each member reserves, and their number.
    """

    def __init__(self, reservation: Any, resources: JobResources) -> None:
        self.reservation, self.resources = reservation, resources
        self.members: list[Any] = []
        self.devices: list[WorkerDevice] = []

    def device(self) -> WorkerDevice:
        """Start the members, let them meet, and return the device of the first with the GPUs of all."""
        ray.get(self.reservation.ready())
        for rank in range(self.resources.processes):
            place = PlacementGroupSchedulingStrategy(self.reservation, placement_group_bundle_index=rank)
            options = {"num_cpus": self.resources.cpus, "num_gpus": self.resources.gpus, "scheduling_strategy": place}
            self.members.append(Worker.options(**options).remote())  # type: ignore[attr-defined]
        self.devices = ray.get([member.device.remote() for member in self.members])
        address = ray.get(self.members[0].meeting_address.remote())
        size = len(self.members)
        ray.get([member.join.remote(address, rank, size) for rank, member in enumerate(self.members)])
        return _device_of_all(self.devices)

    def run(self, unit: WorkUnit, channel: Any) -> UnitEnded:
        """Run a unit on all members; the first one reports progress."""
        refs = [self.members[0].run.remote(unit, channel)]
        refs += [member.follow.remote(unit, rank) for rank, member in enumerate(self.members[1:], 1)]
        ended: dict[int, Any] = {}
        is_canceled, asked, failed_at = ray.get_runtime_context().is_canceled, False, None
        while len(ended) < len(refs):
            if is_canceled() and not asked:
                asked = True
                for ref in refs:
                    ray.cancel(ref)
            pending = [ref for rank, ref in enumerate(refs) if rank not in ended]
            for ref in ray.wait(pending, num_returns=len(pending), timeout=_POLL_SECONDS)[0]:
                rank = refs.index(ref)
                ended[rank] = self._outcome(ref, self.devices[rank].node)
            if failed_at is None and any(_has_failed(each) for each in ended.values()):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > _GRACE_SECONDS:
                break
        broken = len(ended) < len(refs) or any(isinstance(each, Failure) for each in ended.values())
        first = ended.get(0)
        reports = first.reports if isinstance(first, UnitEnded) else []
        results = {rank: each.outcomes if isinstance(each, UnitEnded) else each for rank, each in ended.items()}
        return UnitEnded(merge_outcomes(list(unit.jobs), results, self.devices), reports, broken)

    def wait(self) -> None:
        """Keep the resources reserved until the process is killed."""
        while True:
            time.sleep(3600)

    def _outcome(self, ref: Any, node: str) -> Any:
        """Return what a member on this node returned, or the failure of its process."""
        try:
            return ray.get(ref)
        except ray.exceptions.TaskCancelledError as error:
            return Failure("stopped", type(error).__name__, "on request")
        except ray.exceptions.RayError as error:
            return failure_from_ray(error, node)


def _device_of_all(devices: Sequence[WorkerDevice]) -> WorkerDevice:
    first = devices[0]
    gpus = [gpu if each.node == first.node else f"{each.address}/{gpu}" for each in devices for gpu in each.gpus]
    return replace(first, gpus=tuple(gpus))


def _has_failed(ended: Any) -> bool:
    if isinstance(ended, Failure):
        return True
    outcomes = ended.outcomes if isinstance(ended, UnitEnded) else ended
    return any(isinstance(outcome, Failure) for outcome in outcomes.values())


def merge_outcomes(
    jobs: Sequence[str], results: Mapping[int, Mapping[str, Any] | Failure], devices: Sequence[WorkerDevice]
) -> dict[str, Any]:
    """Return one outcome for each job: the cause of its failure in any member, or the result of the first.

    Args:
        jobs: Keys of the jobs.
        results: For each member that has ended, the outcomes of the jobs, or the failure of its process.
        devices: Devices of all members.
    """
    merged = {}
    for key in jobs:
        failures = []
        for rank, result in sorted(results.items()):
            outcome = result if isinstance(result, Failure) else result[key]
            if isinstance(outcome, Failure):
                where = f"process {rank} of {len(devices)}, {devices[rank]}: "
                failures.append(replace(outcome, message=where + outcome.message))
        if failures:
            merged[key] = min(failures, key=lambda failure: _CAUSES.index(failure.kind))
        else:
            merged[key] = results[0][key]  # type: ignore[index]
    return merged
