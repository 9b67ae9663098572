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
experts = _group("Look at the experts of a library.")
app.add_typer(experts, name="experts")

Root = Annotated[Path, typer.Option(help="The folder that runs write under (storage.root).")]
Library = Annotated[str | None, typer.Option(help="The library; by default the only or the most recent one.")]


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
    from orchestrator.loading import STARTER, recipe_text

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
    from orchestrator.loading import load_config

    loaded = load_config(config, overrides or [])
    from rich.console import Console

    from orchestrator.run import run_library

    run_library(loaded, Console())


@experts.command("ls")
@_answering
def experts_ls(library: Library = None, root: Root = Path("runs")) -> None:
    """List the experts, their versions and how good they are."""
    from rich.console import Console

    from orchestrator.experts import list_experts

    list_experts(root, library, Console())


@app.command()
@_answering
def predict(
    texts: Annotated[list[str], typer.Argument(help="One or more texts.")],
    library: Library = None,
    root: Root = Path("runs"),
) -> None:
    """Task, label and confidence for each text, through the router."""
    from rich.console import Console

    from orchestrator.predict import predict_texts

    predict_texts(root, library, texts, Console())


@app.command()
@_answering
def ui(
    root: Root = Path("runs"),
    uri: Annotated[str | None, typer.Option(help="The store; by default the one under --root.")] = None,
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 5000,
) -> None:
    """Open the MLflow UI on the store of a run."""
    from rich.console import Console

    from orchestrator.config import store_uri
    from orchestrator.ui import open_ui

    open_ui(root, uri or store_uri(root), port, Console())


def main() -> None:
    """The console script."""
    app(prog_name="ttmoe")
