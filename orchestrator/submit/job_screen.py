"""``ttmoe jobs``: list, show, follow and stop the jobs of a cluster."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime

from rich import box
from rich.console import Console
from rich.table import Table

from cluster.jobs import ClusterJobs, SubmittedJob, require_job
from cluster.kinds import open_cluster
from orchestrator.config.clusters import find_cluster
from orchestrator.config.loading import load_config
from orchestrator.plan.quantities import format_duration
from ttmoe.errors import WorkFailedError


def open_jobs(cluster: str, config: str | None) -> ClusterJobs:
    """Return the jobs of a cluster, which the config or the user's file of clusters describes."""
    return open_cluster(find_cluster(cluster, load_config(config).config.clusters if config else None))


def show_jobs(jobs: ClusterJobs, console: Console, *, as_json: bool = False) -> None:
    """Print the jobs of ``ttmoe``, the newest first."""
    found = [job for job in jobs.all() if "library" in job.metadata]
    if as_json:
        console.print_json(json.dumps([_json(job) for job in found]))
        return
    table = Table("job", "library", "status", "started", "time", box=box.SIMPLE_HEAD, pad_edge=False)
    for job in found:
        started = f"{datetime.fromtimestamp(job.started):%Y-%m-%d %H:%M}" if job.started else ""
        table.add_row(job.id, job.metadata["library"], job.status.lower(), started, _duration(job))
    console.print(table if found else "no jobs of ttmoe", highlight=False, markup=False)


def show_job(jobs: ClusterJobs, job_id: str, console: Console, *, as_json: bool = False) -> None:
    """Print how a job stands; raise WorkFailedError, with the exit code of its command, if it failed."""
    job = require_job(jobs, job_id)
    if as_json:
        console.print_json(json.dumps(_json(job)))
    else:
        rows = {"job": job.id, **job.metadata, "status": job.status.lower(), "time": _duration(job)}
        if page := jobs.page(job.id):
            rows["page"] = page
        for name, value in rows.items():
            console.print(f"{name:8} {value}", highlight=False, markup=False, soft_wrap=True)
    if job.status == "FAILED":
        raise job_failed_error(job)


def job_failed_error(job: SubmittedJob) -> WorkFailedError:
    """Return the error for a job that ended without success, with the exit code of its command."""
    fix = f"see `ttmoe jobs logs {job.id}`; submit again to continue: finished work is kept"
    error = WorkFailedError(f"it ended as {job.status}: {job.message}", where=f"job {job.id}", fix=fix)
    error.code = job.exit_code or 1
    return error


def print_log(jobs: ClusterJobs, job_id: str, console: Console, *, follow: bool = False) -> None:
    """Print the output of a job; with ``follow`` until it ends, and raise WorkFailedError if it fails."""
    if not follow:
        require_job(jobs, job_id)
        console.print(jobs.log(job_id), highlight=False, markup=False, soft_wrap=True, end="")
        return
    for line in jobs.follow(job_id):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if (job := require_job(jobs, job_id)).status != "SUCCEEDED":
        raise job_failed_error(job)


def stop_job(jobs: ClusterJobs, job_id: str, console: Console) -> None:
    """Stop a job as Ctrl-C does, and wait until it has ended."""
    job = require_job(jobs, job_id)
    if not job.has_ended:
        job = jobs.stop(job_id)
    console.print(f"job {job_id}: {job.status.lower()}", highlight=False, markup=False)


def _duration(job: SubmittedJob) -> str:
    if job.started is None:
        return ""
    return format_duration((job.ended or datetime.now().timestamp()) - job.started)


def _json(job: SubmittedJob) -> dict[str, object]:
    return {**asdict(job), "metadata": dict(job.metadata)}
