"""Units of work, and what is heard of them: the seam between those who decide and whoever runs the work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from orchestrator.pool.failure_policy import Retry
from workers.failure import Failure
from workers.progress import Progress

LOG_FILE = "log.txt"


@dataclass(frozen=True)
class WorkUnit:
    """Work for one process: ``run(jobs, report=...)`` gives for each key its result or its Failure.

    Several jobs in a unit share the process and what it has loaded. ``log`` gets all that the process prints meanwhile.
    """

    run: Callable[..., dict[str, Any]]
    jobs: Mapping[str, Any]
    log: Path

    @classmethod
    def of(cls, key: str, run: Callable[..., Any], args: tuple, folder: Path, **options: Any) -> WorkUnit:
        """A unit of one job: ``run(*args, report=..., **options)``, its log in ``folder``."""
        return cls(partial(_call, run), {key: (args, options)}, folder / LOG_FILE)


@dataclass(frozen=True)
class JobEvent:
    """What was heard of a job: progress, its result, or a failure and whether it is tried ``again``.

    ``done`` is the last that is heard of it.
    """

    key: str
    progress: tuple[tuple[float, Progress], ...] = ()
    result: Any = None
    failure: Failure | None = None
    again: Retry | None = None
    attempt: int = 1
    action: str = ""
    done: bool = False


class JobRunner(Protocol):
    """Runs units somewhere."""

    def run(
        self, units: Sequence[WorkUnit], smaller: Callable[[Any], Any] | None = None
    ) -> Generator[JobEvent | None, None, None]:
        """Run all units; yields their news, and None when there is none yet. Closed early, it stops what runs.

        ``smaller`` makes of a job one that takes less memory, or None where that is not possible.
        """


def _call(run: Callable[..., Any], jobs: Mapping[str, Any], report: Any) -> dict[str, Any]:
    return {key: run(*args, report=report, **options) for key, (args, options) in jobs.items()}


def run_jointly(run: Callable[..., dict[str, Any]], jobs: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """``run`` on all jobs of a unit at once. It stands here so that workers need not import what decides."""
    return run(tuple(jobs.values()), report)
