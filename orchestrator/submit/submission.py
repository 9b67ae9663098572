"""``ttmoe submit``: run a config on a cluster. Typed again, it finds the job, or continues where one ended."""

from __future__ import annotations

import itertools

from rich.console import Console

from cluster.jobs import JOB_VARIABLE, ClusterJobs, SubmittedJob, require_job
from cluster.kinds import job_text, open_cluster
from cluster.profiles import ClusterProfile
from orchestrator.config.loading import LoadedConfig, mask_config
from orchestrator.config.store_address import mask_uri
from orchestrator.plan.quantities import format_bytes
from orchestrator.submit.job_package import CONFIG_FILE, PLAN_FITS, JobPackage, pack_job
from orchestrator.submit.job_screen import job_failed_error
from ttmoe.errors import InputError

_NO_PYTHON = (126, 127)  # exit codes of a shell that cannot run a command


def submit_config(
    loaded: LoadedConfig,
    cluster: str,
    profile: ClusterProfile,
    console: Console,
    *,
    dry_run: bool = False,
    follow: bool = False,
) -> None:
    """Submit a job that plans a config on a cluster and runs it, and show its plan.

    The same config with the same data and code is the same job: if it runs, its output is shown; if it failed or was
    stopped, another attempt continues it.

    Args:
        loaded: The config.
        cluster: Name of the cluster, as the user wrote it.
        profile: The cluster.
        console: Prints the plan and what to do next.
        dry_run: Print what would be submitted, and stop.
        follow: Print the output until the job ends.

    Raises:
        InputError: If the job cannot be submitted, or its plan does not fit the cluster.
        WorkFailedError: If the job fails while it is followed.
    """
    package = pack_job(loaded, profile)
    if dry_run:
        _show_package(package, profile, console)
        return
    jobs = open_cluster(profile)
    job_id, earlier = _next_attempt(jobs, package.id)
    if earlier and earlier.status == "SUCCEEDED":
        console.print(f"Job {earlier.id} has finished: nothing is submitted", highlight=False, markup=False)
        _print_next(jobs, earlier.id, cluster, package, console)
        return
    if earlier is None or earlier.has_ended:
        metadata = {"library": package.library, "config": loaded.source_name}
        jobs.submit(job_id, package.command, package.files, package.env, metadata)
        console.print(f"Submitted job {job_id} to {jobs.place}", highlight=False, markup=False)
    else:
        job_id = earlier.id
        console.print(f"Job {job_id} is {earlier.status.lower()}", highlight=False, markup=False)
    started = False
    for line in jobs.follow(job_id, (lambda line: False) if follow else (lambda line: line == PLAN_FITS)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        started = started or line == PLAN_FITS
    job = require_job(jobs, job_id)
    _print_next(jobs, job_id, cluster, package, console)
    if job.has_ended and job.status != "SUCCEEDED":
        raise job_failed_error(job) if started else _plan_failed_error(job)


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


def _show_package(package: JobPackage, profile: ClusterProfile, console: Console) -> None:
    sizes = package.files.data_sizes()
    lines = [
        *job_text(profile, package.id, package.command).splitlines(),
        f"# environment: {', '.join([JOB_VARIABLE, *package.env])}",
        f"# storage: {package.storage}",
        f"# MLflow: {mask_uri(package.tracking) if package.tracking else 'in the storage folder'}",
        f"# code: {', '.join(package.files.code)}, as installed here",
        *(f"# file {name}: {path}, {format_bytes(sizes[name])}" for name, path in package.files.paths.items()),
        f"# {CONFIG_FILE}:",
        mask_config(package.files.texts[CONFIG_FILE]),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_next(jobs: ClusterJobs, job_id: str, cluster: str, package: JobPackage, console: Console) -> None:
    where = f"--cluster {cluster}"
    rows = {
        f"ttmoe jobs logs -f {job_id} {where}": "its output",
        f"ttmoe jobs status {job_id} {where}": "",
        f"ttmoe jobs cancel {job_id} {where}": "stop it; finished experts are kept",
    }
    if package.tracking:
        rows[f"ttmoe status --uri {mask_uri(package.tracking)} --library {package.library}"] = "the experts"
    width = max(map(len, rows))
    pages = [f"  Ray     {page}"] if (page := jobs.page(job_id)) else []
    if package.tracking and package.tracking.startswith("http"):
        pages.append(f"  MLflow  {mask_uri(package.tracking)}")
    next_lines = [f"  {line:{width}}  # {note}" if note else f"  {line}" for line, note in rows.items()]
    for line in [*(["", "Pages", *pages] if pages else []), "", "Next", *next_lines]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
