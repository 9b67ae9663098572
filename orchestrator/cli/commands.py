"""The commands of ``ttmoe``, except those of ``ttmoe experts``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.config_commands import config_commands
from orchestrator.cli.doctor_commands import doctor
from orchestrator.cli.expert_commands import experts
from orchestrator.cli.init_command import init
from orchestrator.cli.job_commands import jobs
from orchestrator.cli.options import (
    ClusterOption,
    ConfigArgument,
    JsonOption,
    LibraryOption,
    RootOption,
    SetOption,
    UriOption,
    command,
    command_group,
    console,
    selected_store,
)
from orchestrator.cli.startup import import_registry, prepare_command
from orchestrator.cli.tune_commands import tune_config

JobCommand = Literal["run", "tune"]

app = command_group("Train, register and route libraries of TT-LoRA experts over one frozen language model.")
app.add_typer(experts, name="experts")
app.add_typer(jobs, name="jobs")
app.add_typer(config_commands, name="config")


def main() -> None:
    """Run the command line; the entry point of the console script."""
    prepare_command()
    app(prog_name="ttmoe")


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"ttmoe {version('ttmoe')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


command(app)(init)


@command(app, "data")
def show_data(
    config: ConfigArgument,
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Task to show; by default all.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the rows of a config's tasks as training will read them.

    Prints rows by split and class, what was left out and why, five rows, lengths in tokens, and the rows that two tasks
    share.
    """
    from orchestrator.config.loading import load_config

    loaded = load_config(config, overrides or [])
    from orchestrator.data_view.library_view import view_library
    from orchestrator.data_view.view_screen import show_library_view

    view = view_library(loaded, task, None if as_json else console())
    show_library_view(view, console(), as_json=as_json)


@command(app, "run")
def run_config(config: ConfigArgument, overrides: SetOption = None) -> None:
    """Train and register the experts and the router of a config.

    Repeat the command to continue: finished work is skipped, interrupted training resumes.
    """
    from orchestrator.api import run

    run(config, overrides or [], console=console())


@command(app, "plan")
def plan_config(
    config: ConfigArgument,
    overrides: SetOption = None,
    nodes: Annotated[
        list[str] | None,
        typer.Option(metavar="NODES", help="Plan for a cluster that is not here: 2x8x80GB is two nodes of eight GPUs."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would do, without doing it.

    Prints what would be trained and why, and the memory and time it needs. Exits with 3 if it does not fit.
    """
    from orchestrator.api import plan

    planned = plan(config, overrides or [], nodes=nodes or [], console=None if as_json else console())
    from orchestrator.plan.show import show_plan

    show_plan(planned, console(), as_json=as_json)
    if planned.problem:
        raise planned.problem


@command(app, "submit")
def submit_job(
    config: ConfigArgument,
    cluster: ClusterOption,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job, and submit nothing.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print its output until the job ends.")] = False,
    job_command: Annotated[
        JobCommand, typer.Option("--command", help="What the job does with the config: run, or tune (its search).")
    ] = "run",
) -> None:
    """Run a config on a cluster, as a job.

    The job does not need this machine. It plans on the cluster first. Repeat the command to find the job, or to
    continue after one that failed.
    """
    from orchestrator.config.clusters import find_cluster
    from orchestrator.config.loading import load_config

    loaded = load_config(config, overrides or [])
    profile = find_cluster(cluster, loaded.config.clusters)
    from orchestrator.submit.submission import submit_config
    from orchestrator.submit.submission_screen import show_dry_run, show_submission

    if dry_run:
        show_dry_run(loaded, profile, console(), job_command)
        return
    submission = submit_config(loaded, profile, console(), command=job_command, follow=follow)
    show_submission(submission, cluster, console())
    if submission.problem:
        raise submission.problem


@command(app, "status")
def run_status(
    library: LibraryOption = None, root: RootOption = None, uri: UriOption = None, as_json: JsonOption = False
) -> None:
    """Show the progress of the newest run and the newest search.

    Works from any shell, while they are active or after them.
    """
    import_registry()
    from orchestrator.api import status
    from orchestrator.progress.status_screen import show_status

    selected_store(root, uri, quiet=as_json)
    show_status(status(library, root=root, uri=uri), console(), as_json=as_json)


@command(app, "predict")
def predict_rows(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts to answer; none or - reads standard input.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A .jsonl, .csv, .tsv or .parquet file, or a pattern: 'in/*.csv'."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Output file, or with --ray a folder; by default lines of JSON are printed."),
    ] = None,
    encoding: Annotated[str, typer.Option(metavar="NAME", help="Encoding of the files: cp1252, latin-1.")] = "utf-8",
    delimiter: Annotated[
        str, typer.Option(metavar="CHARACTER", help="Between cells; by default , in CSV, tab in TSV.")
    ] = "",
    quotes: Annotated[
        bool | None, typer.Option("--quotes/--no-quotes", help="Whether quotes enclose cells; by default in CSV alone.")
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the text; by default text.")] = None,
    second: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the second text; by default second, if it exists.")
    ] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column of lists of options; repeated: a column for each option."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print lines of JSON instead of a table.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, metavar="ROWS", help="Rows in a batch.")] = 64,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu or cuda.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --out.")] = False,
    on_ray: Annotated[bool, typer.Option("--ray", help="Answer files on Ray, into a folder of Parquet files.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --ray: processes; by default as many as fit.")
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-worker",
            min=0,
            metavar="N",
            help="With --ray: GPUs of a process; by default 1 if there are any.",
        ),
    ] = None,
    library: LibraryOption = None,
    root: RootOption = None,
    uri: UriOption = None,
) -> None:
    """Predict task and label of texts, lines or files.

    A line of standard input is a text, or a JSON object: {"text": ...}, with "second" for a pair or "choices": [...]
    for a choice among options; or {"messages": [...]}, a conversation to continue. Each line is answered with a line of
    JSON as it arrives; blank lines are skipped.

    A file has a column text and, for rows that need them, second or choices (in CSV and TSV a JSON list); or a column
    messages. The output has the rows in the same order, with their columns and task, label, confidence, routing and
    scores. An input column with one of these names is renamed: label becomes input_label.

    RAY_ADDRESS selects a cluster for --ray. Then --file, --out, --root and the base must be in a folder that all nodes
    share.
    """
    import_registry()
    from orchestrator.predict.dispatch import run_request
    from orchestrator.predict.request import PredictRequest

    request = PredictRequest(
        tuple(texts or ()), file, out, encoding, delimiter, quotes, text, second, tuple(choices or ()), as_json,
        batch_size, device, force, on_ray, workers, gpus, library, selected_store(root, uri, quiet=as_json),
    )  # fmt: skip
    run_request(request)


@command(app)
def ui(
    root: RootOption = None,
    uri: UriOption = None,
    port: Annotated[int, typer.Option(metavar="PORT", help="Port to listen on.")] = 5000,
) -> None:
    """Open the MLflow UI."""
    from orchestrator.progress.mlflow_ui import open_ui

    open_ui(selected_store(root, uri), port, console())


command(app, "tune")(tune_config)
command(app)(doctor)
