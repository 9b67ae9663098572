"""``ttmoe experts rm``: remove versions of an expert, so that the next run of its config trains it again."""

from __future__ import annotations

import shutil
import sys
from functools import partial

from rich.console import Console
from rich.prompt import Confirm

from orchestrator.config.store_address import StoreAddress
from orchestrator.experts.router_state import read_router_state
from orchestrator.experts.version_selection import choose_version, task_versions, version_label
from orchestrator.plan.folders import LibraryFolders
from orchestrator.registry import Registry, Version
from orchestrator.registry.library import open_library
from ttmoe.errors import InputError


def remove_expert(
    store: StoreAddress, library: str | None, name: str, number: int | None, yes: bool, force: bool, console: Console
) -> None:
    """Remove a version, with its MLflow run and work folder; all versions of the task if none is selected.

    ``name`` and ``number`` select the version, as in ``choose_version``. The work folder must be removed too:
    otherwise the next run would register the finished training in it again. MLflow keeps deleted runs until
    ``mlflow gc``; registered versions cannot be restored. ``yes`` skips the confirmation.

    Raises:
        InputError: If there is no such version; if the champion router uses it and ``force`` is False; or if ``yes``
            is False and standard input is not a terminal.
    """
    registry, library = open_library(store, library)
    if number is not None or "@" in name:
        versions = [choose_version(registry, library, name, number)]
    else:
        versions = task_versions(registry, library, name)
    if not force:
        _require_unused(registry, library, versions)
    labels = ", ".join(version_label(version) for version in versions)
    if not yes and not _confirm(f"Remove {labels} from library {library}?", console):
        console.print("nothing was removed")
        return
    folders = LibraryFolders(store.root.resolve(), library, store.root.resolve())
    notify = partial(console.print, soft_wrap=True)
    with registry.hold_lease(library, "ttmoe experts rm", notify) as held:
        if not force:  # again: a run may have trained a router on them since they were shown
            _require_unused(held, library, versions)
        # The folders first: after an interruption the versions are still listed, and can be removed again.
        for version in versions:
            shutil.rmtree(folders.work_folder("experts", version.task, version.spec_hash), ignore_errors=True)
        held.remove_versions(library, versions[0].task, [version.version for version in versions])
    console.print(f"removed {labels}; the next `ttmoe run` trains it again, or names another `expert`", soft_wrap=True)


def _require_unused(registry: Registry, library: str, versions: list[Version]) -> None:
    routing = read_router_state(registry, library, ())
    if routing and (used := [version_label(version) for version in versions if routing.uses(version)]):
        raise InputError(
            f"router v{routing.router.version} uses {', '.join(used)}",
            where=f"library {library}",
            fix="add --force to remove it: the router has its own copy and keeps its answers",
        )


def _confirm(question: str, console: Console) -> bool:
    if not sys.stdin.isatty():
        what = "confirmation is required, and standard input is not a terminal"
        raise InputError(what, where="rm", fix="add --yes to remove without confirmation")
    return Confirm.ask(question, console=console, default=False)
