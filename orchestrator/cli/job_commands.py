"""``ttmoe jobs``: the jobs that ``ttmoe submit`` started, from any machine."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import ClusterOption, JsonOption, command, command_group, console

jobs = command_group("Show and stop the jobs of a cluster.")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, as `submit` and `jobs ls` print it.")]
ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="CONFIG", help="Config with a section `clusters`.")
]


@command(jobs, "ls")
def list_jobs(cluster: ClusterOption, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the jobs, the newest first."""
    from orchestrator.submit.job_screen import open_jobs, show_jobs

    show_jobs(open_jobs(cluster, config), console(), as_json=as_json)


@command(jobs, "status")
def job_status(
    job: JobArgument, cluster: ClusterOption, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show how a job stands. Exits with the code of its command if it failed."""
    from orchestrator.submit.job_screen import open_jobs, show_job

    show_job(open_jobs(cluster, config), job, console(), as_json=as_json)


@command(jobs, "logs")
def job_logs(
    job: JobArgument,
    cluster: ClusterOption,
    config: ConfigOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job ends.")] = False,
) -> None:
    """Print the output of a job."""
    from orchestrator.submit.job_screen import open_jobs, print_log

    print_log(open_jobs(cluster, config), job, console(), follow=follow)


@command(jobs, "cancel")
def cancel_job(job: JobArgument, cluster: ClusterOption, config: ConfigOption = None) -> None:
    """Stop a job. Finished experts stay registered; submit the config again to continue."""
    from orchestrator.submit.job_screen import open_jobs, stop_job

    stop_job(open_jobs(cluster, config), job, console())
