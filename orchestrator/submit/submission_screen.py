"""What ``ttmoe submit`` prints: a job before it is submitted, and where to see it afterwards."""

from __future__ import annotations

from rich.console import Console

from cluster.jobs import JOB_VARIABLE
from cluster.kinds import job_text
from cluster.profiles import ClusterProfile
from orchestrator.config.loading import LoadedConfig, mask_config
from orchestrator.config.store_address import mask_uri
from orchestrator.plan.quantities import format_bytes
from orchestrator.submit.job_package import CONFIG_FILE, pack_job
from orchestrator.submit.submission import Submission


def show_dry_run(loaded: LoadedConfig, profile: ClusterProfile, console: Console, command: str = "run") -> None:
    """Print the job that would be submitted; ``command`` as for ``submit_config``."""
    package = pack_job(loaded, profile, command)
    sizes = package.files.data_sizes()
    lines = [
        *job_text(profile, package.id, package.command, package.files, package.env, package.metadata).split("\n"),
        f"# environment: {', '.join([JOB_VARIABLE, *package.env])}",
        f"# storage: {package.storage}",
        f"# MLflow: {mask_uri(package.tracking) if package.tracking else 'in the storage folder'}",
        f"# code: {package.image or ', '.join(package.files.code) + ', as installed here'}",
        *(f"# file {name}: {path}, {format_bytes(sizes[name])}" for name, path in package.files.paths.items()),
    ]
    if package.image is None:  # otherwise the manifest has it
        lines += [f"# {CONFIG_FILE}:", mask_config(package.files.texts[CONFIG_FILE])]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_submission(submission: Submission, cluster: str, console: Console) -> None:
    """Print the pages of a job and the commands that follow.

    Args:
        submission: The job.
        cluster: Name of the cluster, as the user wrote it.
        console: Console to print to.
    """
    job_id, where = submission.job_id, f"--cluster {cluster}"
    rows = {
        f"ttmoe jobs logs -f {job_id} {where}": "its output",
        f"ttmoe jobs status {job_id} {where}": "",
        f"ttmoe jobs cancel {job_id} {where}": "stop it; finished experts are kept",
    }
    if submission.tracking:
        rows[f"ttmoe status --uri {submission.tracking} --library {submission.library}"] = "the experts"
    width = max(map(len, rows))
    pages = [f"  {name:6}  {page}" for name, page in submission.pages.items()]
    next_lines = [f"  {line:{width}}  # {note}" if note else f"  {line}" for line, note in rows.items()]
    for line in [*(["", "Pages", *pages] if pages else []), "", "Next", *next_lines]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
