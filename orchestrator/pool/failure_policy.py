"""What to do after a failure: small functions of what has failed so far, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from workers.failure import Failure

_BACKOFF = (1.0, 5.0, 20.0, 60.0)  # seconds before the first, second, ... retry
_SYSTEM = ("system", "died", "stalled")
_SAID = {
    "code": "the code or the data failed",
    "memory": "the memory was full",
    "system": "the system failed",
    "died": "its process died",
    "lost": "its node was lost",
    "stalled": "it gave no sign of life",
}


class RetryLimits(Protocol):
    """How often to try (see the config's section ``failures``)."""

    retries: int
    code_retries: int
    stop_after: int


@dataclass(frozen=True)
class Retry:
    """Try again ``after`` so many seconds; with ``smaller``, in less memory."""

    after: float = 0.0
    smaller: bool = False


@dataclass(frozen=True)
class GiveUp:
    """Leave it failed."""


def decide(past: Sequence[Failure], limits: RetryLimits) -> Retry | GiveUp:
    """What to do with a job whose failures so far are ``past``, the newest last."""
    kind = past[-1].kind
    if kind == "lost":  # no fault of the job's: nodes come and go, and preemption may hit it any number of times
        return Retry()
    if kind == "memory":
        return GiveUp() if sum(each.kind == "memory" for each in past) > 1 else Retry(smaller=True)
    group, allowed = (_SYSTEM, limits.retries) if kind in _SYSTEM else (("code",), limits.code_retries)
    count = sum(each.kind in group for each in past)
    return Retry(_BACKOFF[min(count, len(_BACKOFF)) - 1]) if count <= allowed else GiveUp()


def common_failure(ended: Sequence[Failure | None], limits: RetryLimits) -> Failure | None:
    """The failure with which all of the first ``stop_after`` jobs ended (None: it went well), if they ended alike.

    What the code or the data does to all the first ones it will do to the others.
    """
    first = ended[: limits.stop_after]
    if not limits.stop_after or len(first) < limits.stop_after:
        return None
    if any(each is None or each.kind != "code" for each in first):
        return None
    return first[0] if len({_signature(each) for each in first if each}) == 1 else None


def describe_decision(failure: Failure, decision: Retry | GiveUp) -> str:
    """What was done about it, in words."""
    reason = _SAID[failure.kind]
    if isinstance(decision, GiveUp):
        return f"given up: {reason}"
    how = " in smaller micro-batches" if decision.smaller else ""
    when = f" in {decision.after:g} s" if decision.after else ""
    return f"tried again{how}{when}: {reason}"


def _signature(failure: Failure) -> tuple[str, str]:
    """The error without what differs from task to task: numbers, and all that stands in quotes or in a path."""
    text = re.sub(
        r"'[^']*'|\"[^\"]*\"|`[^`]*`|\S*/\S*|tasks\.\S+|\d+",
        "_",
        failure.message.splitlines()[0] if failure.message else "",
    )
    return failure.error, text
