"""The crew: worker processes on Ray, each of which takes one unit after another and keeps its base loaded."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.pool.capacity import JobResources, Node, max_parallel_jobs, require_fits
from orchestrator.pool.failure_policy import GiveUp, Retry, RetryLimits, decide, describe_decision
from orchestrator.pool.ray_workers import (
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

NODE_COUNT_INTERVAL = 5.0  # seconds between looks at what the cluster has: nodes join and leave
_STARTS = 3  # processes in a row that may end before they begin


@dataclass
class _Waiting:
    unit: WorkUnit
    since: float = 0.0  # not to be started before


@dataclass
class WorkerPool:
    """Runs units on the cluster; a context manager. Processes stay between calls of ``run``, with what they loaded.

    As many run at a time as the cluster has room for ``need``, and no more than ``at_most``. With ``grows`` so many are
    asked for whatever there is now, so that the cluster may grow. ``stall`` is in seconds.
    """

    need: JobResources
    limits: RetryLimits
    at_most: int | None = None
    grows: bool = False
    stall: float = 900.0
    every: float = 0.2
    slots: list[WorkerHandle] = field(default_factory=list)
    started: int = 0
    _board: Any = None
    _room: int = 1
    _counted: float = float("-inf")
    _stillborn: int = 0

    def __enter__(self) -> WorkerPool:
        """Raises InfeasibleError where no node of the cluster could ever hold a job."""
        if not self.grows:
            require_fits(cluster_nodes(), self.need, "a job")
        self._board = create_progress_channel()
        return self

    def __exit__(self, *error: object) -> None:
        for slot in self.slots:
            kill_actor(slot.actor)
        self.slots = []
        kill_actor(self._board)

    def run(
        self, units: Sequence[WorkUnit], smaller: Callable[[Any], Any] | None = None
    ) -> Generator[JobEvent | None, None, None]:
        """See ``Runner``. A job that fails does not disturb the others; tried again, it runs in a unit of its own."""
        waiting, past = [_Waiting(unit) for unit in units], defaultdict[str, list[Failure]](list)
        try:
            while waiting or any(slot.unit for slot in self.slots):
                self._hire(len(waiting) + sum(slot.unit is not None for slot in self.slots))
                self._hand_out(waiting)
                heard = list(self._wait())
                for news in self._listen(past):
                    yield news
                for unit, outcome in heard + list(self._stalled()):
                    for key, job in unit.jobs.items():
                        news, again = _judge(unit, key, job, outcome[key], past, self.limits, smaller)
                        if again:
                            waiting.insert(0, again)  # before what has not begun
                        yield news
                if not heard:
                    yield None
        finally:
            for slot in [slot for slot in self.slots if slot.unit]:
                self._dismiss(slot)
            drain_progress(self._board)  # what the stopped ones still said belongs to nobody

    def _hire(self, work: int) -> None:
        """Start processes while there is more work than processes, and room for more."""
        if time.monotonic() - self._counted > NODE_COUNT_INTERVAL:
            self._room, self._counted = self._limit(cluster_nodes()), time.monotonic()
        while len(self.slots) < min(work, self._room):
            self.slots.append(start_worker(self.need))

    def _limit(self, nodes: Sequence[Node]) -> int:
        if self.grows and self.at_most:
            return self.at_most
        # Where all nodes are gone for the moment, one process waits for the first that comes back.
        return max(1, max_parallel_jobs(nodes, self.need, self.at_most))

    def _hand_out(self, waiting: list[_Waiting]) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.node and slot.unit is None:
                ready = next((each for each in waiting if each.since <= now), None)
                if ready is None:
                    return
                waiting.remove(ready)
                slot.begin(ready.unit, self._board)

    def _wait(self) -> Iterator[tuple[WorkUnit, dict[str, Any]]]:
        """Units that have ended, each with what came of its jobs."""
        for slot, value in wait_for_events(self.slots, self.every):
            if isinstance(value, WorkerStarted):
                slot.node, self._stillborn = value.node, 0
                self.started += 1
            elif slot.node is None:
                self._never_started(slot, value)
            else:
                unit, outcome = slot.end(), value
                if isinstance(value, BaseException):
                    failure = failure_from_ray(value, slot.node)
                    outcome = dict.fromkeys(unit.jobs, failure)
                    self._dismiss(slot)
                elif any(isinstance(each, Failure) and each.kind == "memory" for each in value.values()):
                    self._dismiss(slot)  # its memory may be in pieces
                yield unit, outcome

    def _never_started(self, slot: WorkerHandle, error: Any) -> None:
        self._dismiss(slot)
        if any(each.node for each in self.slots):
            return  # others are up: it went with its node, or by chance
        self._stillborn += 1
        if self._stillborn >= _STARTS:
            raise WorkFailedError(
                f"worker processes end before they begin: {error}",
                where="the cluster",
                fix="its nodes need the same ttmoe and Python as this one",
            )

    def _listen(self, past: dict[str, list[Failure]]) -> Iterator[JobEvent]:
        heard: dict[str, list[Any]] = defaultdict(list)
        for key, when, progress in drain_progress(self._board):
            heard[key].append((when, progress))
        for slot in self.slots:
            if slot.unit and not heard.keys().isdisjoint(slot.unit.jobs):
                slot.heard = time.monotonic()
        for key, reports in heard.items():
            yield JobEvent(key, tuple(reports), attempt=len(past[key]) + 1)

    def _stalled(self) -> Iterator[tuple[WorkUnit, dict[str, Any]]]:
        for slot in list(self.slots):
            if slot.unit and time.monotonic() - slot.heard > self.stall:
                unit = slot.end()
                self._dismiss(slot)
                message = f"nothing was heard of it for {self.stall / 60:g} minutes"
                yield unit, dict.fromkeys(unit.jobs, Failure("stalled", "Stalled", message))

    def _dismiss(self, slot: WorkerHandle) -> None:
        kill_actor(slot.actor)
        self.slots.remove(slot)


def _judge(
    unit: WorkUnit,
    key: str,
    job: Any,
    outcome: Any,
    past: dict[str, list[Failure]],
    limits: RetryLimits,
    smaller: Callable[[Any], Any] | None,
) -> tuple[JobEvent, _Waiting | None]:
    """The news of a job that has ended, and the unit that tries it again, if one does."""
    attempt = len(past[key]) + 1
    if not isinstance(outcome, Failure):
        return JobEvent(key, result=outcome, attempt=attempt, done=True), None
    past[key].append(outcome)
    decision = decide(past[key], limits)
    if isinstance(decision, Retry) and decision.smaller:
        job = smaller(job) if smaller else None
        decision = decision if job is not None else GiveUp()
    action = describe_decision(outcome, decision)
    if isinstance(decision, GiveUp):
        return JobEvent(key, failure=outcome, attempt=attempt, action=action, done=True), None
    again = _Waiting(replace(unit, jobs={key: job}), time.monotonic() + decision.after)
    return JobEvent(key, failure=outcome, again=decision, attempt=attempt, action=action), again
