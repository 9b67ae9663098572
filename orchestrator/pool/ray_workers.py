"""Worker processes as Ray actors, and the channel that carries their progress to the driver."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.pool.capacity import JobResources, Node
from orchestrator.pool.device_record import WorkerDevice
from orchestrator.pool.work_units import WorkUnit
from orchestrator.pool.worker_actor import Report, Worker
from orchestrator.pool.worker_group import WorkerGroup, reserve_group
from ttmoe.errors import InputError
from workers.failure import Failure

_ACCELERATOR = "accelerator_type:"  # prefix of Ray's resource for each type of GPU on a node
_RAY_LABEL = "ray.io/node-id"  # differs from node to node
RESTARTED = Failure("stopped", "Stopped", "on request")  # of a job whose unit is stopped for another one


@ray.remote(num_cpus=0)
class _ProgressChannel:
    """Queue of progress reports from the workers to the driver."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def put(self, reports: list[Report]) -> None:
        self.reports += reports

    def take(self) -> list[Report]:
        """Return and remove all reports in the queue."""
        reports, self.reports = self.reports, []
        return reports


@dataclass(frozen=True)
class WorkerStarted:
    """Event of a worker process that is ready.

    Attributes:
        device: The device on which it computes.
    """

    device: WorkerDevice


@dataclass
class WorkerHandle:
    """Driver's view of a worker process.

    Attributes:
        actor: Ray actor handle.
        ref: Ray object that the driver waits for: the device at first, then the unit's results; None when idle.
        device: The device on which it computes; None until the process has started.
        unit: Unit that the process runs; None when idle.
        last_heartbeat: Monotonic time in seconds of the unit's start or of its last progress report.
        changed: Monotonic time in seconds at which the worker was requested, or got or ended its last unit.
        resources: What it reserves.
        started: Monotonic time in seconds at which its process had started, with its resources; None before.
        asked_to_stop: Monotonic time in seconds at which its unit was asked to stop; None if it was not.
        stop_causes: Why, for the jobs of the unit that the requests were about.
        reservation: Ray's placement group of a group of processes; None of a single one.
    """

    actor: Any
    ref: Any
    reservation: Any = None
    device: WorkerDevice | None = None
    unit: WorkUnit | None = None
    last_heartbeat: float = 0.0
    changed: float = field(default_factory=time.monotonic)
    resources: JobResources = field(default_factory=JobResources)
    started: float | None = None
    asked_to_stop: float | None = None
    stop_causes: dict[str, Failure] = field(default_factory=dict)

    def assign_unit(self, unit: WorkUnit, channel: Any) -> None:
        """Start a unit on the worker."""
        self.unit, self.last_heartbeat = unit, time.monotonic()
        self.ref = self.actor.run.remote(unit, channel)

    def keep_reserved(self) -> None:
        """Keep the worker's resources reserved without work, so that no other worker gets its device."""
        self.ref = self.actor.wait.remote()

    @property
    def gpu_seconds(self) -> float:
        """Seconds for which it has reserved GPUs, times their number."""
        gpus = self.resources.gpus * self.resources.processes
        return 0.0 if self.started is None else (time.monotonic() - self.started) * gpus

    @property
    def stop_outcomes(self) -> dict[str, Any]:
        """Outcomes of the unit's jobs if it stops because it was asked to; empty if it was not."""
        if self.unit is None or self.asked_to_stop is None:
            return {}
        return {key: self.stop_causes.get(key, RESTARTED) for key in self.unit.jobs}

    def release_unit(self) -> WorkUnit:
        """Return the unit and mark the worker as idle."""
        unit, self.unit, self.ref = self.unit, None, None
        self.asked_to_stop, self.stop_causes = None, {}
        assert unit is not None
        return unit


def start_worker(resources: JobResources) -> WorkerHandle:
    """Request a worker process, or a group of them, with these resources; Ray starts it when they are free."""
    if resources.processes > 1:
        reservation = reserve_group(resources)
        actor = WorkerGroup.options(scheduling_strategy=_own_node()).remote(reservation, resources)  # type: ignore[attr-defined]
        return WorkerHandle(actor, actor.device.remote(), reservation, resources=resources)
    more: dict[str, Any] = {"memory": resources.memory} if resources.memory else {}
    if resources.accelerator_type:
        more["accelerator_type"] = resources.accelerator_type
    if resources.labels:
        more["label_selector"] = dict(resources.labels)
    actor = Worker.options(num_cpus=resources.cpus, num_gpus=resources.gpus, **more).remote()  # type: ignore[attr-defined]
    return WorkerHandle(actor, actor.device.remote(), resources=resources)


def end_worker(worker: WorkerHandle) -> None:
    """End a worker's process, or the processes of its group, at once."""
    kill_actor(worker.actor)
    if worker.reservation is not None:
        ray.util.remove_placement_group(worker.reservation)  # and with it the processes in it


def _own_node() -> NodeAffinitySchedulingStrategy:
    """Return the driver's own node, so that a process survives the loss of other nodes."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def wait_for_events(workers: Sequence[WorkerHandle], timeout: float) -> Iterator[tuple[WorkerHandle, Any]]:
    """Wait for events of the workers.

    Args:
        workers: Workers to wait for.
        timeout: Longest wait in seconds.

    Yields:
        Each worker with an event, and the event: WorkerStarted, UnitEnded or a RayError. Nothing after the timeout.
    """
    by_ref = {worker.ref: worker for worker in workers if worker.ref is not None}
    if not by_ref:
        time.sleep(timeout)
        return
    ready, pending = ray.wait(list(by_ref), num_returns=1, timeout=timeout)
    more = ray.wait(pending, num_returns=len(pending), timeout=0)[0] if ready and pending else []
    for ref in ready + more:
        worker = by_ref[ref]
        try:
            value = ray.get(ref)
        except ray.exceptions.RayError as error:
            yield worker, error
            continue
        if worker.device is None:
            worker.ref = None
            value = WorkerStarted(value)
        yield worker, value


def request_stop(worker: WorkerHandle, causes: Mapping[str, Failure] | None = None) -> None:
    """Ask a worker to stop its unit: training ends after its present step and a checkpoint.

    Args:
        worker: A worker with a unit.
        causes: Why, for the jobs of the unit that the request is about.
    """
    worker.stop_causes |= causes or {}
    if worker.asked_to_stop is None:
        worker.asked_to_stop = time.monotonic()
        ray.cancel(worker.ref)


def is_cancelled(error: Any) -> bool:
    """Return whether this is Ray's error for a unit that ended after it was asked to stop."""
    return isinstance(error, ray.exceptions.TaskCancelledError)


def stop_units(workers: Sequence[WorkerHandle], seconds: float) -> None:
    """Ask workers to stop their units, and wait until they have, for ``seconds`` at most."""
    for worker in workers:
        request_stop(worker)
    refs = [worker.ref for worker in workers]
    ray.wait(refs, num_returns=len(refs), timeout=seconds)


def failed_node(error: BaseException) -> str:
    """Return the address of the node on which a worker ended before it started, as far as Ray's error tells it."""
    found = re.search(r"\bip[:=] ?([\w.:]+)", str(error))
    return found[1] if found else "an unknown node"


def create_progress_channel() -> Any:
    """Create the progress channel, an actor on the driver's own node."""
    return _ProgressChannel.options(scheduling_strategy=_own_node()).remote()  # type: ignore[attr-defined]


def drain_progress(channel: Any) -> list[Report]:
    """Return all reports since the last call: key of the job, Unix time in seconds, progress."""
    return ray.get(channel.take.remote())


def kill_actor(actor: Any) -> None:
    """Kill an actor's process at once."""
    ray.kill(actor)


def cluster_nodes() -> list[Node]:
    """Return the nodes that are alive, with their total resources as Ray counts them."""
    return [
        Node(
            entry["NodeManagerAddress"],
            entry["Resources"].get("CPU", 0.0),
            entry["Resources"].get("GPU", 0.0),
            int(entry["Resources"].get("memory", 0)),
            id=entry["NodeID"],
            accelerators=tuple(
                name.removeprefix(_ACCELERATOR) for name in entry["Resources"] if name.startswith(_ACCELERATOR)
            ),
            labels=tuple(
                sorted((key, value) for key, value in entry["Labels"].items() if not key.startswith(_RAY_LABEL))
            ),
        )
        for entry in ray.nodes()
        if entry["Alive"]
    ]


def call_on_nodes(nodes: Sequence[Node], function: Callable[[], Any], seconds: float = 120) -> list[Any]:
    """Call a function in a process of its own on each node, where it sees all GPUs of the node.

    Args:
        nodes: Nodes of the cluster.
        function: Function without arguments; it reserves nothing.
        seconds: Longest wait for all of them. A first import of torch from a shared file system takes a minute.

    Returns:
        Its results, in the order of the nodes.

    Raises:
        InputError: If a node does not answer or its call fails; it names the node.
    """
    environment = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # all GPUs stay visible to a task that reserves none
    task = ray.remote(num_cpus=0, max_calls=1, runtime_env={"env_vars": environment})(lambda: function())
    refs = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote() for node in nodes
    ]
    ends = time.monotonic() + seconds
    return [_result_of(node, ref, ends) for node, ref in zip(nodes, refs, strict=True)]


def _result_of(node: Node, ref: Any, ends: float) -> Any:
    try:
        return ray.get(ref, timeout=max(0.0, ends - time.monotonic()))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", error)
        if isinstance(cause, InputError):
            raise InputError(f"node {node.name}: {cause.what}", where=cause.where, fix=cause.fix) from None
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[-1]
        fix = "install the same versions of ttmoe and its dependencies there as here, or remove the node"
        raise InputError(f"node {node.name} cannot be used: {reason}", where="the cluster", fix=fix) from None
