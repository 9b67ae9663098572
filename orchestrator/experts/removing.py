"""``ttmoe experts rm``: a version out of the registry, so that the next run of its config trains it again."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.prompt import Confirm

from orchestrator.experts.router_state import read_router_state
from orchestrator.experts.version_selection import choose_version, task_versions, version_label
from orchestrator.plan.folders import LibraryFolders
from orchestrator.registry import Registry, Version
from orchestrator.registry.driver_lock import driver_lock
from orchestrator.registry.library import open_library
from ttmoe.errors import InputError


def remove_expert(
    root: Path, library: str | None, name: str, number: int | None, yes: bool, force: bool, console: Console
) -> None:
    """Remove a version, or with neither ``@`` nor ``--version`` all of a task's, with their runs and work folders.

    A work folder that stayed would undo it in silence: stage 1 registers the finished training it finds there.
    MLflow keeps deleted runs until ``mlflow gc``; registered versions do not come back. Raises InputError for a
    version that the champion router answers with, unless ``force``; and where nobody is there to ask.
    """
    registry, found = open_library(root, library)
    one = number is not None or "@" in name
    gone = [choose_version(registry, found, name, number)] if one else task_versions(registry, found, name)
    if not force:
        _require_unrouted(registry, found, gone)
    what = ", ".join(version_label(version) for version in gone)
    if not yes and not _confirmed(f"Remove {what} from library {found}?", console):
        console.print("nothing was removed")
        return
    folders = LibraryFolders(root.resolve(), found, root.resolve())
    with driver_lock(folders.home):
        # In this order: whoever is interrupted still finds the versions listed, and removes them again.
        for version in gone:
            shutil.rmtree(folders.work("experts", version.task, version.spec_hash), ignore_errors=True)
        registry.remove_versions(found, gone[0].task, [version.version for version in gone])
    console.print(f"removed {what}; a `ttmoe run` whose config asks for it trains it again", soft_wrap=True)


def _require_unrouted(registry: Registry, library: str, gone: list[Version]) -> None:
    routing = read_router_state(registry, library, ())
    if routing and (named := [version_label(version) for version in gone if routing.names(version)]):
        raise InputError(
            f"router v{routing.router.version} answers with {', '.join(named)}",
            where=f"library {library}",
            fix="remove it all the same with --force: the router keeps its own copy and answers as before",
        )


def _confirmed(question: str, console: Console) -> bool:
    if not sys.stdin.isatty():
        raise InputError("there is no terminal to ask on", where="rm", fix="say --yes to remove without being asked")
    return Confirm.ask(question, console=console, default=False)
