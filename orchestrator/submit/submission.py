"""``ttmoe submit``: run a config on a cluster. Typed again, it finds the job, or continues where one ended."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console

from cluster.jobs import ClusterJobs, SubmittedJob, require_job
from cluster.kinds import open_cluster
from cluster.profiles import ClusterProfile
from orchestrator.config.loading import LoadedConfig
from orchestrator.config.store_address import mask_uri
from orchestrator.submit.job_package import PLAN_FITS, JobPackage, pack_job
from orchestrator.submit.job_screen import job_failed_error
from ttmoe.errors import InputError

_NO_PYTHON = (126, 127)  # exit codes of a shell that cannot run a command


@dataclass(frozen=True)
class Submission:
    """A config that was submitted as a job.

    Attributes:
        job_id: Id of the job.
        state: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``, as it was last seen.
        is_new: Whether the job was submitted now; otherwise the same submission was found.
        library: The library.
        tracking: URI of its MLflow store, without passwords; None for the one in the storage folder.
        pages: Web pages of the job by name, ``Ray`` and ``MLflow``, as far as there are any.
        problem: Why the plan or the run failed, or None.
    """

    job_id: str
    state: str
    is_new: bool
    library: str
    tracking: str | None
    pages: Mapping[str, str]
    problem: InputError | None


def submit_config(
    loaded: LoadedConfig, profile: ClusterProfile, console: Console, *, command: str = "run", follow: bool = False
) -> Submission:
    """Submit a job that plans a config on a cluster and runs it, and wait until it is planned.

    The same config with the same data and code is the same job: if it runs, its output is shown; if it failed or was
    stopped, another attempt continues it.

    Args:
        loaded: The config.
        profile: The cluster.
        console: Prints the output of the job.
        command: ``run``, or ``tune`` for its search alone.
        follow: Wait until the job ends.

    Raises:
        InputError: If the job cannot be submitted.
    """
    package = pack_job(loaded, profile, command)
    jobs = open_cluster(profile)
    job_id, earlier = _next_attempt(jobs, package.id)
    if earlier and earlier.status == "SUCCEEDED":
        console.print(f"Job {earlier.id} has finished: nothing is submitted", highlight=False, markup=False)
        return _submission(jobs, earlier, package)
    if is_new := earlier is None or earlier.has_ended:
        jobs.submit(job_id, package.command, package.files, package.env, package.metadata)
        console.print(f"Submitted job {job_id} to {jobs.place}", highlight=False, markup=False)
    else:
        job_id = earlier.id
        console.print(f"Job {job_id} is {earlier.status.lower()}", highlight=False, markup=False)
    started = False
    for line in jobs.follow(job_id, (lambda line: False) if follow else (lambda line: line == PLAN_FITS)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        started = started or line == PLAN_FITS
    job = require_job(jobs, job_id)
    problem = None
    if job.has_ended and job.status != "SUCCEEDED":
        problem = job_failed_error(job) if started else _plan_failed_error(job)
    return _submission(jobs, job, package, is_new=is_new, problem=problem)


def _submission(
    jobs: ClusterJobs,
    job: SubmittedJob,
    package: JobPackage,
    *,
    is_new: bool = False,
    problem: InputError | None = None,
) -> Submission:
    tracking = mask_uri(package.tracking) if package.tracking else None
    pages = {"Ray": jobs.page(job.id), "MLflow": tracking if tracking and tracking.startswith("http") else None}
    found = {name: page for name, page in pages.items() if page}
    return Submission(job.id, job.status, is_new, package.library, tracking, found, problem)


def _next_attempt(jobs: ClusterJobs, first: str) -> tuple[str, SubmittedJob | None]:
    """Return the id of a new attempt, and the last attempt before it."""
    known, earlier = {job.id: job for job in jobs.all()}, None
    for number in itertools.count(1):
        job_id = first if number == 1 else f"{first}-{number}"
        if job_id not in known:
            break
        earlier = known[job_id]
    return job_id, earlier


def _plan_failed_error(job: SubmittedJob) -> InputError:
    fix = "correct the cause above, and submit again"
    if job.exit_code in _NO_PYTHON:
        fix = "give `python` of the cluster: the path of the Python that runs Ray there"
    error = InputError("the plan failed", where=f"job {job.id}", fix=fix)
    error.code = job.exit_code or 1
    return error
