"""Interface of the worker pool: work units that go in, and job events that come out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.pool.capacity import JobResources
from orchestrator.pool.failure_policy import Retry
from workers.failure import Failure
from workers.progress import Progress

LOG_FILE = "log.txt"


@dataclass(frozen=True)
class WorkUnit:
    """Jobs that run in one worker process and share what it has loaded.

    Attributes:
        run: Called as ``run(jobs, report=...)`` in the worker; returns for each key a result or a Failure.
        jobs: Arguments of the jobs by key.
        log: File that receives everything the process prints while the unit runs.
        all_cores: Whether the option ``threads`` of its job becomes the number of cores that the pool has reserved on
            the worker's node. Only for a unit that runs alone, made by ``of``.
    """

    run: Callable[..., dict[str, Any]]
    jobs: Mapping[str, Any]
    log: Path
    all_cores: bool = False

    @classmethod
    def of(cls, key: str, run: Callable[..., Any], args: tuple, folder: Path, **options: Any) -> WorkUnit:
        """Create a unit with one job, which calls ``run(*args, report=..., **options)`` and logs to ``folder``.

        The pair of ``args`` and ``options`` is what ``reduce_memory`` of ``JobRunner.run`` gets and returns.
        """
        return cls(partial(_call, run), {key: (args, options)}, folder / LOG_FILE)

    def with_threads(self, threads: int) -> WorkUnit:
        """Return the unit with another value of the option ``threads``."""
        jobs = {key: (args, {**options, "threads": threads}) for key, (args, options) in self.jobs.items()}
        return replace(self, jobs=jobs)


@dataclass(frozen=True)
class JobEvent:
    """Event of one job: progress, its result, or a failure.

    Attributes:
        key: Key of the job.
        progress: New progress reports, each with its Unix time in seconds.
        result: Result of the job, set in its last event if it succeeded.
        failure: Failure of the current attempt.
        retry: How the job is retried after the failure; None if it is not.
        attempt: Number of the attempt, from 1.
        action: What the pool did after the failure, as text.
        done: Whether this is the last event of the job.
    """

    key: str
    progress: tuple[tuple[float, Progress], ...] = ()
    result: Any = None
    failure: Failure | None = None
    retry: Retry | None = None
    attempt: int = 1
    action: str = ""
    done: bool = False


@dataclass(frozen=True)
class JobRequest:
    """A request for one job.

    Attributes:
        action: ``skip`` leaves the job out; ``retry`` tries a failed one again, and restarts one that runs.
        key: Key of the job.
        answer: Receives what was done, as text.
    """

    action: Literal["skip", "retry"]
    key: str
    answer: Callable[[str], Any]


class JobRunner(Protocol):
    """Anything that runs work units, such as the worker pool."""

    def run(
        self,
        units: Sequence[WorkUnit],
        reduce_memory: Callable[[Any], Any] | None = None,
        resources: JobResources | None = None,
        requests: Callable[[], Iterable[JobRequest]] = tuple,
        more_units: Callable[[int], Iterable[WorkUnit]] | None = None,
    ) -> Generator[JobEvent | None, None, None]:
        """Run all units and yield their events.

        Args:
            units: Units to run.
            reduce_memory: Returns a version of a job that uses less memory, or None if there is none. It is applied
                once to a job that ran out of memory, and to one whose process dies again: the system may have killed
                it for its memory.
            resources: What a worker of these units reserves, at least; by default what the runner's workers do.
            requests: Returns the requests for jobs that arrived since the last call; called at every poll.
            more_units: Returns at most so many further units, which may depend on the events so far; called at every
                poll with the number of workers for which there is no unit. The call ends when it returns none while
                nothing runs.

        Yields:
            Job events as they arrive, and None after a poll without a finished unit. Closing the generator stops the
            units that still run.
        """


def _call(run: Callable[..., Any], jobs: Mapping[str, Any], report: Any) -> dict[str, Any]:
    return {key: run(*args, report=report, **options) for key, (args, options) in jobs.items()}


def run_jointly(run: Callable[..., dict[str, Any]], jobs: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Call ``run`` once with all jobs of a unit, and return its results by key.

    It is defined here so that worker processes do not import the modules that decide what to run.
    """
    return run(tuple(jobs.values()), report)
