"""Worker pool on Ray: start worker processes, assign units, collect results and progress, and retry failed jobs."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.embedded import require_alive, while_alive
from orchestrator.pool.capacity import JobResources, jobs_on_node, max_parallel_jobs, require_fits, serves
from orchestrator.pool.device_record import DeviceRecord, name_devices
from orchestrator.pool.failure_policy import RetryLimits
from orchestrator.pool.job_requests import apply_request
from orchestrator.pool.ray_workers import (
    WorkerHandle,
    WorkerStarted,
    cluster_nodes,
    create_progress_channel,
    drain_progress,
    end_worker,
    failed_node,
    is_cancelled,
    kill_actor,
    start_worker,
    stop_units,
    wait_for_events,
)
from orchestrator.pool.unit_queue import QueuedUnit, finish_job
from orchestrator.pool.work_units import JobEvent, JobRequest, WorkUnit
from orchestrator.pool.worker_actor import UnitEnded
from orchestrator.pool.worker_failure import failure_from_ray
from ttmoe.errors import WorkFailedError
from workers.failure import Failure

NODE_COUNT_INTERVAL = 5.0  # seconds between two counts of the cluster's nodes, which join and leave
_MAX_FAILED_STARTS = 3  # workers in a row that may end before they start
# Kinds of failures that end their process: its memory may be fragmented, and after any other error of CUDA each of its
# later calls of CUDA fails too.
_ENDS_WORKER = ("memory", "device")
_START_SECONDS = 60.0  # after which a worker that has not started is one for which the cluster has no room now


@dataclass
class WorkerPool:
    """Pool of worker processes on Ray; a context manager.

    Workers stay alive between units and between calls of ``run``, and keep what they have loaded, such as the base. A
    worker may be a group of processes that run each unit together.

    Attributes:
        resources: Resources that each worker reserves, where a call of ``run`` gives no others.
        limits: Limits of retries.
        max_workers: Largest number of workers; None for as many as the cluster can run.
        autoscaling: Request ``max_workers`` workers even if the cluster cannot run them yet, so that it adds nodes.
        stall_seconds: Seconds without a progress report after which a unit counts as stalled.
        notify: Receives a message for the user, such as of a node on which no worker starts.
        poll_seconds: Longest wait in seconds for a result before progress is collected again.
        stop_seconds: Longest wait in seconds for a unit that was asked to stop; then its process is ended.
        workers: Current workers.
        devices: Which devices failed. A worker on one that is left out keeps it reserved.
        started: Number of workers that have started so far.
        busy_seconds: Seconds in which workers had a unit, in all calls of ``run``, summed over workers.
        waiting_seconds: Seconds in which they had none, the start of their processes included.
    """

    resources: JobResources
    limits: RetryLimits
    max_workers: int | None = None
    autoscaling: bool = False
    stall_seconds: float = 900.0
    notify: Callable[[str], Any] = print
    poll_seconds: float = 0.2
    stop_seconds: float = 20.0
    workers: list[WorkerHandle] = field(default_factory=list)
    devices: DeviceRecord = field(default_factory=DeviceRecord)
    started: int = 0
    busy_seconds: float = 0.0
    waiting_seconds: float = 0.0
    _ended_gpu_seconds: float = 0.0  # of workers that have ended
    _channel: Any = None
    _wanted: JobResources = field(init=False)  # what workers reserve that are started now
    _places: int = 1  # jobs that the cluster runs at the same time
    _job_nodes: int = 1  # nodes that can run a job
    _nodes_counted_at: float = float("-inf")
    _node_names: set[str] = field(default_factory=set)
    _failed_starts: Counter[str] = field(default_factory=Counter)  # by node, since the last worker that started

    def __post_init__(self) -> None:
        self._wanted = self.resources

    def __enter__(self) -> WorkerPool:
        """Open the pool; raise InfeasibleError if no node of the cluster can run a job and none will be added."""
        if not self.autoscaling:
            require_fits(cluster_nodes(), self.resources, "a job")
        self._channel = create_progress_channel()
        return self

    def __exit__(self, *error: object) -> None:
        for worker in list(self.workers):
            self._stop_worker(worker)
        kill_actor(self._channel)

    def run(
        self,
        units: Sequence[WorkUnit],
        reduce_memory: Callable[[Any], Any] | None = None,
        resources: JobResources | None = None,
        requests: Callable[[], Iterable[JobRequest]] = tuple,
        more_units: Callable[[int], Iterable[WorkUnit]] | None = None,
    ) -> Generator[JobEvent | None, None, None]:
        """Run all units and yield their events, see ``JobRunner.run``.

        A failed job does not affect other jobs. Its retry runs in a unit of its own. Workers that reserve less than
        ``resources`` are ended; the others keep what they have loaded.

        Raises:
            WorkFailedError: If workers end before they start, several times in a row, or if all devices are left out.
            InfeasibleError: If no node has ``resources``, and none will be added.
        """
        self._reserve(resources or self.resources, alone=len(units) == 1 and more_units is None)
        units, queue, failures = (
            list(units),
            [QueuedUnit(unit) for unit in units],
            defaultdict[str, list[Failure]](list),
        )
        for worker in self.workers:
            worker.changed = time.monotonic()  # the time between two calls is no waiting
        try:
            while True:
                require_alive()
                if more_units:
                    added = list(more_units(self._without_unit(queue)))
                    units += added
                    queue += [QueuedUnit(unit) for unit in added]
                if not queue and not self._busy:
                    break
                self._start_workers(queue)
                self._require_device()
                for request in requests():
                    yield from apply_request(request, units, queue, self.workers, failures)
                self._assign_units(queue)
                finished = list(self._poll_results())
                if not any(isinstance(each, Failure) for _, ended in finished for each in ended.outcomes.values()):
                    self._assign_units(queue)  # before the driver spends time on the events
                yield from self._collect_progress([ended for _, ended in finished], failures)
                for unit, ended in finished + list(self._stop_stalled()):
                    for key, job in unit.jobs.items():
                        event, retry = finish_job(
                            unit,
                            key,
                            job,
                            ended.outcomes[key],
                            failures[key],
                            self.limits,
                            reduce_memory,
                            other_nodes=self._job_nodes > 1,
                        )
                        if retry:
                            queue.insert(0, retry)  # before units that have not started
                        yield event
                if not finished:
                    yield None
        finally:
            require_alive()
            self._stop_units()
            while_alive(lambda: drain_progress(self._channel))  # the next call must not receive what stopped units told

    def gpu_seconds(self) -> float:
        """Return the seconds for which workers have reserved GPUs so far, summed over GPUs."""
        return self._ended_gpu_seconds + sum(worker.gpu_seconds for worker in tuple(self.workers))

    def _stop_units(self) -> None:
        """Stop the units that run when a call of ``run`` ends early. They save checkpoints, if there is time."""
        if busy := [worker for worker in self.workers if worker.unit]:
            while_alive(lambda: stop_units(busy, self.stop_seconds))
        for worker in list(self.workers):
            self._count_time(worker)
            if worker.unit:
                self._stop_worker(worker)

    def _reserve(self, resources: JobResources, alone: bool) -> None:
        """Set what new workers reserve, and end those that do not serve a call with these resources."""
        for worker in list(self.workers):
            useless = worker.device in self.devices.left_out and worker.resources != resources
            if useless or not serves(worker.resources, resources, alone=alone):
                self._stop_worker(worker)
        if resources != self.resources and not self.autoscaling:
            require_fits(cluster_nodes(), replace(resources, cpus=min(resources.cpus, self.resources.cpus)), "a job")
        self._wanted, self._nodes_counted_at = resources, float("-inf")

    def _lower_request(self) -> None:
        """Ask for half the cores if no node had them free: on a shared cluster other work may keep some of each node.

        Never for fewer than those of other jobs.
        """
        least, waiting = self.resources.cpus, [worker for worker in self.workers if worker.device is None]
        if self._wanted.cpus <= least or len(waiting) < len(self.workers):
            return
        if any(time.monotonic() - worker.changed > _START_SECONDS for worker in waiting):
            for worker in waiting:
                self._stop_worker(worker)
            cpus = max(least, self._wanted.cpus // 2)
            self.notify(f"no node has {self._wanted.cpus:g} free CPUs: the next job asks for {cpus:g}")
            self._wanted = replace(self._wanted, cpus=cpus)

    def _start_workers(self, queue: Sequence[QueuedUnit]) -> None:
        """Start workers until there is one for each unit, or the cluster is full."""
        if time.monotonic() - self._nodes_counted_at > NODE_COUNT_INTERVAL:
            nodes, before = cluster_nodes(), self._node_names
            # If all nodes are gone for the moment, one worker waits for the first node that comes back.
            self._places, self._nodes_counted_at = max(1, max_parallel_jobs(nodes, self._wanted)), time.monotonic()
            self._job_nodes = sum(jobs_on_node(node, self._wanted) > 0 for node in nodes)
            self._node_names = {node.name for node in nodes}
            if self._node_names - before:
                self._failed_starts.clear()  # a node joined, on which workers may start
        if self._failed_starts.total() >= _MAX_FAILED_STARTS and self._running:
            return
        self._lower_request()
        useful = sum(
            worker.device is None or worker.unit is not None or self._next_unit(worker, queue) is not None
            for worker in self.workers
        )
        wanted = min(len(queue) + self._busy, self._most_busy) - useful
        for _ in range(wanted if self.autoscaling else min(wanted, self._places - len(self.workers))):
            self.workers.append(start_worker(self._wanted))

    @property
    def _busy(self) -> int:
        return sum(worker.unit is not None for worker in self.workers)

    def _without_unit(self, queue: Sequence[QueuedUnit]) -> int:
        """Return the number of workers, started or not, for which there is no unit."""
        places = self._most_busy if self.autoscaling else min(self._places, self._most_busy)
        return max(0, places - self._busy - len(queue))

    @property
    def _running(self) -> int:
        """Number of workers that have started and may get work."""
        return sum(bool(worker.device) and worker.device not in self.devices.left_out for worker in self.workers)

    @property
    def _most_busy(self) -> int:
        return self.max_workers or sys.maxsize

    def _require_device(self) -> None:
        """Raise WorkFailedError if all devices of the cluster are left out."""
        started = [worker.device for worker in self.workers if worker.device]
        if not self._busy and len(started) >= self._places and self.devices.left_out.issuperset(started):
            raise WorkFailedError(
                f"two jobs in a row failed on every device: {name_devices(started)}; {self.devices.last_failure}",
                where="the cluster",
                fix="check these devices, for example with nvidia-smi, then repeat the command: finished work is kept",
            )

    def _next_unit(self, worker: WorkerHandle, queue: Sequence[QueuedUnit], now: float = math.inf) -> QueuedUnit | None:
        """Return the first unit whose delay has passed and that this worker may run.

        No unit runs on a device that is left out. A job that failed on a device, or by an error of the code on a node,
        runs there again only if there is no other one for it.
        """
        if worker.device in self.devices.left_out:
            return None
        for queued in queue:
            if queued.not_before <= now:
                keys = queued.unit.jobs
                if not self.devices.rules_out(worker.device, keys) or not self._others_exist(keys):
                    return queued
        return None

    def _others_exist(self, keys: Collection[str]) -> bool:
        """Return whether a device that is not ruled out for these jobs has a worker, or soon will have."""
        if any(not self.devices.rules_out(worker.device, keys) for worker in self.workers if worker.device):
            return True
        ages = [time.monotonic() - worker.changed for worker in self.workers if worker.device is None]
        return max(ages) < _START_SECONDS if ages else self.autoscaling or len(self.workers) < self._places

    def _assign_units(self, queue: list[QueuedUnit]) -> None:
        """Give each idle worker the first unit of the queue that it may run and whose delay has passed."""
        now = time.monotonic()
        for worker in self.workers:
            if worker.device and worker.unit is None and self._busy < self._most_busy:
                ready = self._next_unit(worker, queue, now)
                if ready is not None:
                    queue.remove(ready)
                    self._count_time(worker)
                    unit = ready.unit.with_threads(self._cores_beside(worker)) if ready.unit.all_cores else ready.unit
                    worker.assign_unit(unit, self._channel)

    def _cores_beside(self, worker: WorkerHandle) -> int:
        """Return the number of cores that this worker and the others on its node have reserved."""
        node = worker.device.node if worker.device else ""
        reserved = [other.resources.cpus for other in self.workers if other.device and other.device.node == node]
        return max(1, int(sum(reserved)))

    def _poll_results(self) -> Iterator[tuple[WorkUnit, UnitEnded]]:
        """Yield finished units with their outcomes; register started and dead workers."""
        for worker, value in wait_for_events(self.workers, self.poll_seconds):
            if isinstance(value, WorkerStarted):
                worker.device, worker.started = value.device, time.monotonic()
                self._failed_starts.clear()
                self.started += 1
                if worker.device in self.devices.left_out:
                    worker.keep_reserved()
            elif worker.device is None:
                self._handle_failed_start(worker, value)
            elif worker.unit is None:
                self._stop_worker(worker)  # it kept a device reserved, and has ended
            else:
                self._count_time(worker)
                stopped, unit, ended = worker.stop_outcomes, worker.release_unit(), value
                if stopped and is_cancelled(value):
                    ended = UnitEnded(stopped, [])
                elif isinstance(value, BaseException):
                    ended = UnitEnded(dict.fromkeys(unit.jobs, failure_from_ray(value, worker.device.node)), [])
                    self._stop_worker(worker)
                elif ended.broken or any(
                    isinstance(each, Failure) and each.kind in _ENDS_WORKER for each in ended.outcomes.values()
                ):
                    self._stop_worker(worker)
                yield unit, replace(ended, outcomes=self.devices.add(worker.device, ended.outcomes))

    def _handle_failed_start(self, worker: WorkerHandle, error: Any) -> None:
        """Count a failed start. After several in a row, no more are tried while a worker runs; without any, raise."""
        self._stop_worker(worker)
        self._failed_starts[failed_node(error)] += 1
        if self._failed_starts.total() < _MAX_FAILED_STARTS:
            return  # it may have been lost with its node, or by chance
        nodes = ", ".join(f"{count} on {node}" for node, count in self._failed_starts.items())
        what = f"worker processes end before they start ({nodes}): {error}"
        fix = "install the same versions of ttmoe and Python on its nodes as here"
        if not self._running:
            raise WorkFailedError(what, where="the cluster", fix=fix)
        if self._failed_starts.total() == _MAX_FAILED_STARTS:
            self.notify(f"{what}; the run goes on with {self._running} workers; {fix}")

    def _collect_progress(self, ended: list[UnitEnded], failures: dict[str, list[Failure]]) -> Iterator[JobEvent]:
        """Yield new progress reports of each job, and update the heartbeats of the workers."""
        reports: dict[str, list[Any]] = defaultdict(list)
        last = [report for event in ended for report in event.reports]
        for key, when, progress in drain_progress(self._channel) + last:
            reports[key].append((when, progress))
        for worker in self.workers:
            if worker.unit and not reports.keys().isdisjoint(worker.unit.jobs):
                worker.last_heartbeat = time.monotonic()
        for key, entries in reports.items():
            yield JobEvent(key, tuple(entries), attempt=len(failures[key]) + 1)

    def _stop_stalled(self) -> Iterator[tuple[WorkUnit, UnitEnded]]:
        """Stop workers without a recent heartbeat, or that did not stop when asked, and yield their units as failed."""
        now, message = time.monotonic(), f"no progress report for {self.stall_seconds / 60:g} minutes"
        for worker in list(self.workers):
            stopping = worker.asked_to_stop is not None and now - worker.asked_to_stop > self.stop_seconds
            if worker.unit and (stopping or now - worker.last_heartbeat > self.stall_seconds):
                self._count_time(worker)
                stopped, unit = worker.stop_outcomes, worker.release_unit()
                self._stop_worker(worker)
                yield unit, UnitEnded(stopped or dict.fromkeys(unit.jobs, Failure("stalled", "Stalled", message)), [])

    def _count_time(self, worker: WorkerHandle) -> None:
        """Count the seconds since the worker's last change; called before the next one, and at the end."""
        now = time.monotonic()
        if worker.unit:
            self.busy_seconds += now - worker.changed
        else:
            self.waiting_seconds += now - worker.changed
        worker.changed = now

    def _stop_worker(self, worker: WorkerHandle) -> None:
        self._ended_gpu_seconds += worker.gpu_seconds
        end_worker(worker)
        self.workers.remove(worker)
