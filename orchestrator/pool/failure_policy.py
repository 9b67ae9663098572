"""Decide what to do after a failure: retry a job, fail it, or stop the stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from workers.failure import Failure

_BACKOFF = (1.0, 5.0, 20.0, 60.0)  # seconds before the first, second, ... retry
_SYSTEM = ("system", "died", "stalled")
_NOT_THE_JOBS = ("device", "skipped", "stopped")  # kinds that say nothing about other jobs
_REASONS = {
    "code": "error in the code or the data",
    "memory": "out of memory",
    "device": "device failed",
    "system": "system error",
    "died": "worker process died",
    "lost": "node lost",
    "stalled": "no heartbeat",
    "skipped": "skipped on request",
    "stopped": "stopped on request",
}


class RetryLimits(Protocol):
    """Limits of retries; see the section ``failures`` of the config.

    Attributes:
        retries: Retries of a job after system failures, and as many after failures of devices.
        code_retries: Retries of a job after errors of the code or the data.
        lost_retries: Retries of a job after the loss of its node without a notice.
        stop_after: Number of first jobs that must fail alike to stop the stage; 0 never stops it.
    """

    retries: int
    code_retries: int
    lost_retries: int
    stop_after: int


@dataclass(frozen=True)
class Retry:
    """Decision to run the job again.

    Attributes:
        delay: Seconds to wait before the retry.
        reduce_memory: Whether the retry is to use less memory.
    """

    delay: float = 0.0
    reduce_memory: bool = False
    elsewhere: bool = False


@dataclass(frozen=True)
class GiveUp:
    """Decision not to retry the job."""


def decide(failures: Sequence[Failure], limits: RetryLimits, *, other_nodes: bool = False) -> Retry | GiveUp:
    """Decide whether a failed job is retried.

    An error of the code or the data may be an error of its node, such as a package that is missing there: it is the
    job's own only if it happens on a second node.

    Args:
        failures: All failures of the job so far, the newest last; at least one.
        limits: Limits of retries.
        other_nodes: Whether the job can run on more than one node.
    """
    kind = failures[-1].kind
    if kind == "skipped":
        return GiveUp()
    if failures[-1].preempted or kind == "stopped":  # not the job's fault: it may hit a job any number of times
        return Retry()
    if kind == "memory":
        return GiveUp() if sum(failure.kind == "memory" for failure in failures) > 1 else Retry(reduce_memory=True)
    group = _SYSTEM if kind in _SYSTEM else (kind,)
    allowed = {"code": limits.code_retries, "lost": limits.lost_retries}.get(kind, limits.retries)
    count = sum(failure.kind in group and not failure.preempted for failure in failures)
    # The system kills a process that takes too much memory without an error; one death may be a chance.
    reduce_memory = kind == "died" and sum(failure.kind == "died" for failure in failures) > 1
    elsewhere = kind == "code" and other_nodes and count == 1
    if count > allowed and not elsewhere:
        return GiveUp()
    return Retry(_BACKOFF[min(count, len(_BACKOFF)) - 1], reduce_memory, elsewhere)


def common_failure(outcomes: Sequence[Failure | None], limits: RetryLimits) -> Failure | None:
    """Return the failure that the first ``stop_after`` jobs have in common.

    An error of the code or the data that stops all first jobs will stop the remaining ones too. Failures of devices
    are not the jobs' own, and do not count; nor do jobs that a user left out.

    Args:
        outcomes: Failure of each finished job in the order in which they finished, None for a success.
        limits: Limits of retries.

    Returns:
        The first job's failure, or None if fewer jobs finished or they did not fail alike.
    """
    counted = [failure for failure in outcomes if failure is None or failure.kind not in _NOT_THE_JOBS]
    first = counted[: limits.stop_after]
    if not limits.stop_after or len(first) < limits.stop_after:
        return None
    if any(failure is None or failure.kind != "code" for failure in first):
        return None
    return first[0] if len({_signature(failure) for failure in first if failure}) == 1 else None


def describe_decision(failure: Failure, decision: Retry | GiveUp) -> str:
    """Return a decision and its reason as text, such as ``retried in 5 s: worker process died``."""
    reason = _REASONS[failure.kind]
    if isinstance(decision, GiveUp):
        return f"not retried: {reason}"
    how = " in smaller batches" if decision.reduce_memory else " on another node" if decision.elsewhere else ""
    when = f" in {decision.delay:g} s" if decision.delay else ""
    return f"retried{how}{when}: {reason}"


def _signature(failure: Failure) -> tuple[str, str]:
    """Return the error without the parts that differ from task to task: numbers, quoted text and paths."""
    text = re.sub(
        r"'[^']*'|\"[^\"]*\"|`[^`]*`|\S*/\S*|tasks\.\S+|\d+",
        "_",
        failure.message.splitlines()[0] if failure.message else "",
    )
    return failure.error, text
