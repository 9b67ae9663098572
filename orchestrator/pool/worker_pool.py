"""Worker pool on Ray: start worker processes, assign units, collect results and progress, and retry failed jobs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.pool.capacity import JobResources, Node, max_parallel_jobs, require_fits
from orchestrator.pool.failure_policy import GiveUp, Retry, RetryLimits, decide, describe_decision
from orchestrator.pool.ray_workers import (
    UnitEnded,
    WorkerHandle,
    WorkerStarted,
    cluster_nodes,
    create_progress_channel,
    drain_progress,
    failure_from_ray,
    kill_actor,
    start_worker,
    wait_for_events,
)
from orchestrator.pool.work_units import JobEvent, WorkUnit
from ttmoe.errors import WorkFailedError
from workers.failure import Failure

NODE_COUNT_INTERVAL = 5.0  # seconds between two counts of the cluster's nodes, which join and leave
_MAX_FAILED_STARTS = 3  # workers in a row that may end before they start


@dataclass
class _QueuedUnit:
    unit: WorkUnit
    not_before: float = 0.0  # monotonic time in seconds


@dataclass
class WorkerPool:
    """Pool of worker processes on Ray; a context manager.

    Workers stay alive between units and between calls of ``run``, and keep what they have loaded, such as the base.

    Attributes:
        resources: Resources that each worker reserves.
        limits: Limits of retries.
        max_workers: Largest number of workers; None for as many as the cluster can run.
        autoscaling: Request ``max_workers`` workers even if the cluster cannot run them yet, so that it adds nodes.
        stall_seconds: Seconds without a progress report after which a unit counts as stalled.
        poll_seconds: Longest wait in seconds for a result before progress is collected again.
        workers: Current workers.
        started: Number of workers that have started so far.
        busy_seconds: Seconds in which workers had a unit, in all calls of ``run``, summed over workers.
        waiting_seconds: Seconds in which they had none, the start of their processes included.
    """

    resources: JobResources
    limits: RetryLimits
    max_workers: int | None = None
    autoscaling: bool = False
    stall_seconds: float = 900.0
    poll_seconds: float = 0.2
    workers: list[WorkerHandle] = field(default_factory=list)
    started: int = 0
    busy_seconds: float = 0.0
    waiting_seconds: float = 0.0
    _channel: Any = None
    _worker_limit: int = 1
    _nodes_counted_at: float = float("-inf")
    _failed_starts: int = 0

    def __enter__(self) -> WorkerPool:
        """Open the pool; raise InfeasibleError if no node of the cluster can run a job and none will be added."""
        if not self.autoscaling:
            require_fits(cluster_nodes(), self.resources, "a job")
        self._channel = create_progress_channel()
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            kill_actor(worker.actor)
        self.workers = []
        kill_actor(self._channel)

    def run(
        self, units: Sequence[WorkUnit], reduce_memory: Callable[[Any], Any] | None = None
    ) -> Generator[JobEvent | None, None, None]:
        """Run all units and yield their events, see ``JobRunner.run``.

        A failed job does not affect other jobs. Its retry runs in a unit of its own.

        Raises:
            WorkFailedError: If workers end before they start, several times in a row.
        """
        queue, failures = [_QueuedUnit(unit) for unit in units], defaultdict[str, list[Failure]](list)
        for worker in self.workers:
            worker.changed = time.monotonic()  # the time between two calls is no waiting
        try:
            while queue or any(worker.unit for worker in self.workers):
                self._start_workers(len(queue) + sum(worker.unit is not None for worker in self.workers))
                self._assign_units(queue)
                finished = list(self._poll_results())
                if not any(isinstance(each, Failure) for _, ended in finished for each in ended.outcomes.values()):
                    self._assign_units(queue)  # before the driver spends time on the events
                yield from self._collect_progress([ended for _, ended in finished], failures)
                for unit, ended in finished + list(self._stop_stalled()):
                    for key, job in unit.jobs.items():
                        event, retry = _finish_job(
                            unit, key, job, ended.outcomes[key], failures[key], self.limits, reduce_memory
                        )
                        if retry:
                            queue.insert(0, retry)  # before units that have not started
                        yield event
                if not finished:
                    yield None
        finally:
            for worker in list(self.workers):
                self._count_time(worker)
                if worker.unit:
                    self._stop_worker(worker)
            drain_progress(self._channel)  # the next call must not receive reports of stopped units

    def _start_workers(self, units: int) -> None:
        """Start workers until there is one for each unit, or the cluster is full."""
        if time.monotonic() - self._nodes_counted_at > NODE_COUNT_INTERVAL:
            self._worker_limit, self._nodes_counted_at = self._count_places(cluster_nodes()), time.monotonic()
        while len(self.workers) < min(units, self._worker_limit):
            self.workers.append(start_worker(self.resources))

    def _count_places(self, nodes: Sequence[Node]) -> int:
        if self.autoscaling and self.max_workers:
            return self.max_workers
        # If all nodes are gone for the moment, one worker waits for the first node that comes back.
        return max(1, max_parallel_jobs(nodes, self.resources, self.max_workers))

    def _assign_units(self, queue: list[_QueuedUnit]) -> None:
        """Give each idle worker the first unit of the queue whose delay has passed."""
        now = time.monotonic()
        for worker in self.workers:
            if worker.node and worker.unit is None:
                ready = next((queued for queued in queue if queued.not_before <= now), None)
                if ready is None:
                    return
                queue.remove(ready)
                self._count_time(worker)
                worker.assign_unit(ready.unit, self._channel)

    def _poll_results(self) -> Iterator[tuple[WorkUnit, UnitEnded]]:
        """Yield finished units with their outcomes; register started and dead workers."""
        for worker, value in wait_for_events(self.workers, self.poll_seconds):
            if isinstance(value, WorkerStarted):
                worker.node, self._failed_starts = value.node, 0
                self.started += 1
            elif worker.node is None:
                self._handle_failed_start(worker, value)
            else:
                self._count_time(worker)
                unit, ended = worker.release_unit(), value
                if isinstance(value, BaseException):
                    ended = UnitEnded(dict.fromkeys(unit.jobs, failure_from_ray(value, worker.node)), [])
                    self._stop_worker(worker)
                elif any(isinstance(each, Failure) and each.kind == "memory" for each in ended.outcomes.values()):
                    self._stop_worker(worker)  # its memory may be fragmented
                yield unit, ended

    def _handle_failed_start(self, worker: WorkerHandle, error: Any) -> None:
        self._stop_worker(worker)
        if any(other.node for other in self.workers):
            return  # other workers run: this one was lost with its node, or by chance
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise WorkFailedError(
                f"worker processes end before they start: {error}",
                where="the cluster",
                fix="install the same versions of ttmoe and Python on its nodes as here",
            )

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
        """Stop workers without a recent heartbeat, and yield their units as failed."""
        for worker in list(self.workers):
            if worker.unit and time.monotonic() - worker.last_heartbeat > self.stall_seconds:
                self._count_time(worker)
                unit = worker.release_unit()
                self._stop_worker(worker)
                message = f"no progress report for {self.stall_seconds / 60:g} minutes"
                yield unit, UnitEnded(dict.fromkeys(unit.jobs, Failure("stalled", "Stalled", message)), [])

    def _count_time(self, worker: WorkerHandle) -> None:
        """Count the seconds since the worker's last change; called before the next one, and at the end."""
        now = time.monotonic()
        if worker.unit:
            self.busy_seconds += now - worker.changed
        else:
            self.waiting_seconds += now - worker.changed
        worker.changed = now

    def _stop_worker(self, worker: WorkerHandle) -> None:
        kill_actor(worker.actor)
        self.workers.remove(worker)


def _finish_job(
    unit: WorkUnit,
    key: str,
    job: Any,
    outcome: Any,
    failures: list[Failure],
    limits: RetryLimits,
    reduce_memory: Callable[[Any], Any] | None,
) -> tuple[JobEvent, _QueuedUnit | None]:
    """Return the event of a job's attempt that has ended, and the queued retry, if there is one.

    A failure is appended to ``failures``.
    """
    attempt = len(failures) + 1
    if not isinstance(outcome, Failure):
        return JobEvent(key, result=outcome, attempt=attempt, done=True), None
    failures.append(outcome)
    decision = decide(failures, limits)
    if isinstance(decision, Retry) and decision.reduce_memory:
        job = reduce_memory(job) if reduce_memory else None
        decision = decision if job is not None else GiveUp()
    action = describe_decision(outcome, decision)
    if isinstance(decision, GiveUp):
        return JobEvent(key, failure=outcome, attempt=attempt, action=action, done=True), None
    queued = _QueuedUnit(replace(unit, jobs={key: job}), time.monotonic() + decision.delay)
    return JobEvent(key, failure=outcome, retry=decision, attempt=attempt, action=action), queued
