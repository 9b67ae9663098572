"""``ttmoe jobs``: the jobs that ``ttmoe submit`` started, from any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.options import (
    ClusterOption,
    JsonOption,
    LibraryOption,
    RootOption,
    UriOption,
    command,
    command_group,
    console,
    selected_store,
)
from orchestrator.cli.startup import import_registry

jobs = command_group("Show and stop the jobs of a cluster.")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, as `submit` and `jobs ls` print it.")]
ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="CONFIG", help="Config with a section `clusters`.")
]
RunTaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Task whose expert trains, waits or has failed.")]
RunClusterOption = Annotated[
    str | None, typer.Option("--cluster", metavar="CLUSTER", help="Cluster of the job; by default --uri or --root.")
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


@command(jobs, "skip")
def skip_task(
    task: RunTaskArgument,
    cluster: RunClusterOption = None,
    config: ConfigOption = None,
    library: LibraryOption = None,
    root: RootOption = None,
    uri: UriOption = None,
) -> None:
    """Leave an expert out of the active run.

    The router serves the others, and the next run trains it.
    """
    _request("skip", task, cluster, config, library, root, uri)


@command(jobs, "retry")
def retry_task(
    task: RunTaskArgument,
    cluster: RunClusterOption = None,
    config: ConfigOption = None,
    library: LibraryOption = None,
    root: RootOption = None,
    uri: UriOption = None,
) -> None:
    """Try a failed expert of the active run again.

    One that trains is stopped, and continues from its checkpoint.
    """
    _request("retry", task, cluster, config, library, root, uri)


def _request(
    action: Literal["skip", "retry"],
    task: str,
    cluster: str | None,
    config: str | None,
    library: str | None,
    root: Path | None,
    uri: str | None,
) -> None:
    import_registry()
    from orchestrator.progress.requesting import request_for_task

    if cluster:
        from orchestrator.submit.job_store import find_job_store

        address, library_of_config = find_job_store(cluster, config)
        library = library or library_of_config
    else:
        address = selected_store(root, uri)
    request_for_task(address, library, action, task, console())
