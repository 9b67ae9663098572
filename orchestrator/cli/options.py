"""What the commands share: options, consoles and the handling of errors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from cluster.error import ClusterError
from orchestrator.cli.unexpected import unexpected_error
from orchestrator.config.refused_writes import refused_write
from orchestrator.run.termination import interruption_code, terminated_by
from ttmoe.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.config.store_address import StoreAddress

P = ParamSpec("P")
R = TypeVar("R")
# How a command ends, and arguments that are wrong: what typer itself handles.
_OF_TYPER: tuple[type[BaseException], ...] = (
    typer.Exit,
    typer.Abort,
    *(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException"),
)

ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="Config file, or name of a packaged recipe: quickstart, smollm2, tune-paper; to plan alone: llama-8b, "
        "llama-70b, qwen3-8b.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a config key: train.steps=100. Can be repeated."),
]
ClusterOption = Annotated[
    str,
    typer.Option(metavar="CLUSTER", help="Cluster: a name in the config or in clusters.yaml, or http://HOST:8265."),
]
RootOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder that contains the runs (storage.root); by default runs."),
]
UriOption = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="MLflow store; by default the one in --root, or else MLFLOW_TRACKING_URI, or the one in runs.",
    ),
]
LibraryOption = Annotated[str | None, typer.Option(metavar="NAME", help="Library; by default the one that ran last.")]
TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="Task of the expert; TASK@v3 or TASK@candidate selects a version.")
]
VersionOption = Annotated[
    int | None, typer.Option("--version", metavar="N", help="Version; by default the champion, or else the candidate.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def command_group(text: str) -> typer.Typer:
    """Return an empty group of commands with a help text."""
    # Without rich, help is faster, and a traceback ends at the line that failed.
    return typer.Typer(help=text, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


def command(group: typer.Typer, name: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that adds a function to a group as a command.

    The command prints an InputError, a ClusterError, or a file that it may not write, as a message and exits with its
    code. It exits with 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP (see ``run.termination``), and with 141
    if nobody reads its output any more. Of any other error, the traceback goes to a file.

    Args:
        group: The group.
        name: Name of the command; by default the name of the function.
    """

    def add(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except (InputError, ClusterError) as error:
                raise _print_error(error) from None
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left when it ends
                raise typer.Exit(141) from None
            except _OF_TYPER:
                raise
            except Exception as error:
                refused = refused_write(error) if isinstance(error, OSError) else None
                raise _print_error(refused or unexpected_error(error)) from None
            except KeyboardInterrupt:
                what = "stopped" if terminated_by() else "interrupted"
                with suppress(OSError):  # the terminal is closed
                    typer.echo(f"{what}; repeat the command to continue", err=True)
                raise typer.Exit(interruption_code()) from None

        return group.command(name)(call)

    return add


def _print_error(error: InputError | ClusterError) -> typer.Exit:
    """Print an error, and return what ends the command with its code."""
    from orchestrator.config.store_address import mask_secrets

    head = f"error: {error.where}\n  {error.what}" if error.where else f"error: {error.what}"
    typer.echo(mask_secrets(f"{head}\n  {error.fix}" if error.fix else head), err=True)
    return typer.Exit(error.code)


def selected_store(root: Path | None, uri: str | None, *, quiet: bool = False) -> StoreAddress:
    """Return the store that a command without a config asks, and name it on standard error.

    Args:
        root: The option ``--root``.
        uri: The option ``--uri``.
        quiet: Do not name it, because the output is JSON.
    """
    from orchestrator.config.store_address import find_store

    store = find_store(root=root, uri=uri)
    if not quiet:
        typer.echo(f"store: {store}", err=True)
    return store


def console(*, quiet: bool = False) -> Console:
    """Return a console on standard output; a quiet one prints nothing."""
    from rich.console import Console

    return Console(emoji=False, quiet=quiet)  # a text such as :key: stays as it is
