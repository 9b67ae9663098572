"""The command line: each command reads its arguments and calls one function.

Imports of what does the work stand inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from ttmoe.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def _group(text: str) -> typer.Typer:
    # Without rich, help answers sooner, and a traceback shows the line that matters.
    return typer.Typer(help=text, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


app = _group("Train, register and route libraries of TT-LoRA experts over one frozen language model.")
experts = _group("The experts of a library: look, verify, promote, remove, take out and bring in.")
app.add_typer(experts, name="experts")

RootOption = Annotated[Path, typer.Option(help="The folder that runs write under (storage.root).")]
LibraryOption = Annotated[str | None, typer.Option(help="The library; by default the only or the most recent one.")]
ExpertArgument = Annotated[str, typer.Argument(help="A task; TASK@v3 and TASK@candidate name a version of it.")]
VersionOption = Annotated[
    int | None, typer.Option("--version", help="The version; by default the champion, or the candidate.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _answering(command: Callable[P, R]) -> Callable[P, R]:
    """The command with the errors a user is meant to read as a message, and Ctrl-C as one line."""

    @functools.wraps(command)
    def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except InputError as error:
            typer.echo(_layout(error), err=True)
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            typer.echo("stopped; type the command again to continue", err=True)
            raise typer.Exit(130) from None

    return answer


def _layout(error: InputError) -> str:
    first = f"error: {error.where}\n  {error.what}" if error.where else f"error: {error.what}"
    return f"{first}\n  {error.fix}" if error.fix else first


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ttmoe {version('ttmoe')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
@_answering
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("ttmoe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented starter config."""
    from orchestrator.config.loading import STARTER, recipe_text

    if path.is_dir():
        path = path / "ttmoe.yaml"
    if path.exists() and not force:
        fix = "name another, or replace it with --force"
        raise InputError("the file is already there", where=str(path), fix=fix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(recipe_text(STARTER), encoding="utf-8")
    typer.echo(f"wrote {path}\nnext: let tasks.my_task point to your data in it, then type: ttmoe run {path}")


@app.command()
@_answering
def run(
    config: Annotated[str, typer.Argument(help="A packaged recipe (quickstart, smollm2) or a config file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.steps=100.")
    ] = None,
) -> None:
    """Train the experts, register them, train the router, search. Again: continue."""
    from orchestrator.config.loading import load_config

    loaded = load_config(config, overrides or [])
    from rich.console import Console

    from orchestrator.run.driver import run_library

    run_library(loaded, Console())


@app.command()
@_answering
def plan(
    config: Annotated[str, typer.Argument(help="A packaged recipe (quickstart, smollm2) or a config file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.steps=100.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a run would do and why, what it takes, and whether it fits (else exit code 3)."""
    from orchestrator.config.loading import load_config

    loaded = load_config(config, overrides or [])
    from rich.console import Console

    from orchestrator.plan.show import show_plan

    show_plan(loaded, Console(), as_json)


@app.command()
@_answering
def status(
    library: LibraryOption = None,
    root: RootOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for a program to read.")] = False,
) -> None:
    """How far the newest run has come; from any shell, while it goes on or after."""
    from rich.console import Console

    from orchestrator.progress.status_screen import show_status

    show_status(root, library, Console(), as_json=as_json)


@experts.command("ls")
@_answering
def experts_ls(
    library: LibraryOption = None,
    root: RootOption = Path("runs"),
    every: Annotated[bool, typer.Option("--all", help="All versions, not the current ones alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the experts, their versions and how good they are, and whether the router is theirs."""
    from rich.console import Console

    from orchestrator.experts.listing import print_experts

    print_experts(root, library, every, as_json, Console())


@experts.command("show")
@_answering
def experts_show(
    task: ExpertArgument,
    version: VersionOption = None,
    library: LibraryOption = None,
    root: RootOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """All that the registry knows of one expert."""
    from rich.console import Console

    from orchestrator.experts.showing import show_expert

    show_expert(root, library, task, version, as_json, Console())


@experts.command("verify")
@_answering
def experts_verify(
    tasks: Annotated[list[str] | None, typer.Argument(help="Tasks (TASK, TASK@v3); by default all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All versions, not the current ones alone.")] = False,
    library: LibraryOption = None,
    root: RootOption = Path("runs"),
) -> None:
    """Load the experts from the registry and check that they are whole and answer as they should."""
    from rich.console import Console

    from orchestrator.experts.verifying import verify_experts

    verify_experts(root, library, tasks or [], every, Console())


@experts.command("promote")
@_answering
def experts_promote(
    task: ExpertArgument, version: VersionOption = None, library: LibraryOption = None, root: RootOption = Path("runs")
) -> None:
    """Make a version its task's champion (by default the candidate)."""
    from rich.console import Console

    from orchestrator.experts.promoting import promote_expert

    promote_expert(root, library, task, version, Console())


@experts.command("rm")
@_answering
def experts_rm(
    task: ExpertArgument,
    version: Annotated[int | None, typer.Option("--version", help="This version; by default all of them.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even what the router answers with.")] = False,
    library: LibraryOption = None,
    root: RootOption = Path("runs"),
) -> None:
    """Remove an expert, its runs and its work folders; the next run of its config trains it again."""
    from rich.console import Console

    from orchestrator.experts.removing import remove_expert

    remove_expert(root, library, task, version, yes, force, Console())


@experts.command("export")
@_answering
def experts_export(
    task: ExpertArgument,
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    form: Annotated[str, typer.Option("--format", help="peft (a LoRA adapter) or ttmoe (its own files).")] = "peft",
    version: VersionOption = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    library: LibraryOption = None,
    root: RootOption = Path("runs"),
) -> None:
    """Write an expert as a standard LoRA adapter, or as its own files."""
    from rich.console import Console

    from orchestrator.experts.exporting import export_expert

    export_expert(root, library, task, version, folder, form, force, Console())


@experts.command("import")
@_answering
def experts_import(
    folder: Annotated[Path, typer.Argument(help="A ttmoe expert, or a PEFT LoRA adapter.")],
    task: Annotated[str, typer.Option("--task", help="The task it becomes the expert of.")],
    labels: Annotated[
        str | None, typer.Option("--labels", help="a,b: the head's outputs in order; by default as the folder says.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="text, pair or generate; by default as the folder says, else text.")
    ] = None,
    library: LibraryOption = None,
    root: RootOption = Path("runs"),
) -> None:
    """Register an expert that was made elsewhere, as a candidate."""
    from rich.console import Console

    from orchestrator.experts.importing import import_expert

    import_expert(root, library, folder, task, labels, kind, Console())


@app.command()
@_answering
def predict(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none, or -: lines of standard input.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="A .jsonl, .csv, .tsv or .parquet file, or a pattern: 'in/*.csv'.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write, likewise; by default lines of JSON are printed.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="The text's column; by default text.")] = None,
    second: Annotated[
        str | None, typer.Option("--second", help="The second text's column; by default second, if there.")
    ] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option("--choices", help="The column of lists of options, or one for each option; by default choices."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Lines of JSON in place of the table.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that are computed together.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace earlier answers in --out.")] = False,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Answer on Ray (RAY_ADDRESS: a cluster); --out is a folder of Parquet files.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="With --ray: processes; by default all that fit.")] = None,
    gpus: Annotated[
        float | None,
        typer.Option("--gpus-per-worker", min=0, help="With --ray: of each process; by default 1 where there are any."),
    ] = None,
    library: LibraryOption = None,
    root: RootOption = Path("runs"),
) -> None:
    """Task, label and probabilities for texts, lines or files, through the router.

    Lines of standard input are texts, or objects where they start with {: {"text": ...}, with "second" for a pair or
    "choices": [...] to choose among. Each is answered by a line of JSON as it comes; blank lines are passed over.

    A file's columns are text, second and choices (in a table: a JSON list), the last two where a row has them; others
    are named by options. Every row comes out in its order, with its columns and task, label, confidence, routing and
    scores added; a column that has such a name, label say, comes out as input_label.

    On a cluster, input, --out, --root and the base lie in a folder that all nodes share.
    """
    from orchestrator.predict.request import PredictRequest, run_request

    request = PredictRequest(
        tuple(texts or ()), file, out, text, second, tuple(choices or ()), as_json, batch_size, device, force,
        on_ray, workers, gpus,
    )  # fmt: skip
    run_request(root, library, request)


@app.command()
@_answering
def ui(
    root: RootOption = Path("runs"),
    uri: Annotated[str | None, typer.Option(help="The store; by default the one under --root.")] = None,
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 5000,
) -> None:
    """Open the MLflow UI on the store of a run."""
    from rich.console import Console

    from orchestrator.config.schema import store_uri
    from orchestrator.progress.mlflow_ui import open_ui

    open_ui(root, uri or store_uri(root), port, Console())


def main() -> None:
    """The console script."""
    app(prog_name="ttmoe")
