"""The jobs of a cluster, whatever its kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from cluster.error import ClusterError
from cluster.job_files import JobFiles

JOB_VARIABLE = "TTMOE_JOB"  # environment variable of a job: its id
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class SubmittedJob:
    """A job of the cluster.

    Attributes:
        id: The id under which it was submitted.
        status: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``.
        message: What the cluster says about the status.
        metadata: Texts that were submitted with the job.
        started: Unix time in seconds; None before it starts.
        ended: Unix time in seconds; None before it ends.
        exit_code: Exit code of its command; None before it ends, or if it was lost.
    """

    id: str
    status: str
    message: str
    metadata: Mapping[str, str]
    started: float | None
    ended: float | None
    exit_code: int | None

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended in any way."""
        return self.status in _ENDED


class ClusterJobs(Protocol):
    """The jobs of one cluster.

    Attributes:
        place: The cluster, as text.
    """

    place: str

    def submit(
        self, job_id: str, command: str, files: JobFiles, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Submit a job.

        Args:
            job_id: The id of the job; the cluster has no other with this id.
            command: Shell command, run in the working directory.
            files: Files of the working directory.
            env: Environment variables of the job.
            metadata: Texts to keep with the job.

        Raises:
            ClusterError: If the cluster refuses the job.
        """

    def all(self) -> list[SubmittedJob]:
        """Return the jobs that were submitted, the newest first."""

    def log(self, job_id: str) -> str:
        """Return what the job has printed so far."""

    def follow(self, job_id: str, is_last: Callable[[str], bool] = lambda line: False) -> Iterator[str]:
        """Yield the lines that the job prints, from the first one on, until it ends or a line is the last one."""

    def stop(self, job_id: str) -> SubmittedJob:
        """Stop a job as SIGTERM does, and return it when it has ended."""

    def page(self, job_id: str) -> str | None:
        """Return the address of the job's web page, if it has one."""


def require_job(jobs: ClusterJobs, job_id: str) -> SubmittedJob:
    """Return a job; raise ClusterError if the cluster has none with this id."""
    found = next((job for job in jobs.all() if job.id == job_id), None)
    if found is None:
        raise ClusterError(f"the cluster has no job {job_id!r}", where=jobs.place, fix="see `ttmoe jobs ls`")
    return found


def own_job() -> str | None:
    """Return the id of the job in which this process runs, or None."""
    return os.environ.get(JOB_VARIABLE)
