"""``ttmoe experts promote``: make a version of an expert its task's champion."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from orchestrator.experts.router_state import RETRAIN, read_router_state
from orchestrator.experts.version_selection import choose_version, version_label
from orchestrator.registry.library import open_library
from orchestrator.registry.versions import CANDIDATE


def promote_expert(root: Path, library: str | None, name: str, number: int | None, console: Console) -> None:
    """Make a version (where none is said, the candidate) its task's champion, and say what that does to the router.

    A later ``ttmoe run`` makes the versions that its config asks for the champions again.
    """
    registry, found = open_library(root, library)
    version = choose_version(registry, found, name, number, aliases=(CANDIDATE,))
    registry.promote(version)
    console.print(f"{version_label(version)} is the champion", highlight=False)
    routing = read_router_state(registry, found, registry.experts(found))
    if routing and not routing.names(version):
        knows = "another version of it" if version.task in routing.lock else "nothing of it"
        console.print(
            f"the router is stale: v{routing.router.version} was trained for {knows}; {RETRAIN}",
            highlight=False,
            soft_wrap=True,
        )
