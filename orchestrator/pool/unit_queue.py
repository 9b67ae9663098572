"""Units that wait for a worker, and those among them that repeat a failed job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.pool.failure_policy import GiveUp, Retry, RetryLimits, decide, describe_decision
from orchestrator.pool.work_units import JobEvent, WorkUnit
from workers.failure import Failure


@dataclass
class QueuedUnit:
    """A unit that waits for a worker.

    Attributes:
        unit: The unit.
        not_before: Monotonic time in seconds before which it does not start.
    """

    unit: WorkUnit
    not_before: float = 0.0


def finish_job(
    unit: WorkUnit,
    key: str,
    job: Any,
    outcome: Any,
    failures: list[Failure],
    limits: RetryLimits,
    reduce_memory: Callable[[Any], Any] | None,
    *,
    other_nodes: bool = False,
) -> tuple[JobEvent, QueuedUnit | None]:
    """Return the event of a job's attempt that has ended, and the queued retry, if there is one.

    Args:
        unit: The unit in which the job ran.
        key: Key of the job.
        job: Arguments of the job.
        outcome: Its result or a Failure.
        failures: The job's earlier failures; a new one is appended.
        limits: Limits of retries.
        reduce_memory: See ``JobRunner.run``.
        other_nodes: Whether the job can run on more than one node.
    """
    attempt = len(failures) + 1
    if not isinstance(outcome, Failure):
        return JobEvent(key, result=outcome, attempt=attempt, done=True), None
    failures.append(outcome)
    decision = decide(failures, limits, other_nodes=other_nodes)
    if isinstance(decision, Retry) and decision.reduce_memory:
        smaller = reduce_memory(job) if reduce_memory else None
        if smaller is not None:
            job = smaller
        else:  # out of memory, it would fail again; a process may have died of something else
            decision = GiveUp() if outcome.kind == "memory" else replace(decision, reduce_memory=False)
    action = describe_decision(outcome, decision)
    if isinstance(decision, GiveUp):
        return JobEvent(key, failure=outcome, attempt=attempt, action=action, done=True), None
    queued = QueuedUnit(replace(unit, jobs={key: job}), time.monotonic() + decision.delay)
    return JobEvent(key, failure=outcome, retry=decision, attempt=attempt, action=action), queued
