"""``ttmoe experts promote``: make a version of an expert the champion of its task."""

from __future__ import annotations

from rich.console import Console

from orchestrator.config.store_address import StoreAddress
from orchestrator.experts.router_state import how_to_route_to, read_router_state
from orchestrator.experts.version_selection import choose_version, version_label
from orchestrator.registry.library import open_library
from orchestrator.registry.versions import CANDIDATE


def promote_expert(store: StoreAddress, library: str | None, name: str, number: int | None, console: Console) -> None:
    """Give the alias ``champion`` of a task to another version, and report if the router becomes stale.

    A later ``ttmoe run`` gives the alias to the versions that its config describes: it undoes this, unless the config
    names the version as the task's ``expert``.

    Args:
        store: The store to open.
        library: The library; None selects the one that ran last.
        name: The task, or a version of it such as ``trec@v3``. A task alone selects the version ``candidate``.
        number: Number of the version; None if ``name`` selects it.
        console: Console to print to.

    Raises:
        InputError: If there is no such version.
    """
    registry, library = open_library(store, library)
    version = choose_version(registry, library, name, number, aliases=(CANDIDATE,))
    registry.promote(version)
    console.print(f"{version_label(version)} is the champion", highlight=False)
    routing = read_router_state(registry, library, registry.experts(library))
    if routing and not routing.uses(version):
        trained = "with another version of it" if version.task in routing.lock else "without it"
        line = f"the router is stale: v{routing.router.version} was trained {trained}; {how_to_route_to(version)}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
