"""The store and library of a command that reads an existing library."""

from __future__ import annotations

from datetime import UTC, datetime

from orchestrator.config.store_address import StoreAddress
from orchestrator.registry import Library, Registry
from ttmoe.errors import InputError


def open_library(address: StoreAddress, library: str | None, *, searches: bool = False) -> tuple[Registry, str]:
    """Open a store and select a library.

    Args:
        address: The store.
        library: Name of the library; None selects the one with the newest run.
        searches: Whether searches count as runs.

    Returns:
        The registry and the library's name.

    Raises:
        InputError: The store or the library does not exist.
    """
    fix = "create one with `ttmoe run quickstart`, or name another storage root with --root, or a store with --uri"
    if address.is_missing:
        raise InputError("there is no library in this store", where=str(address), fix=fix)
    registry = Registry.open(address.uri, address.artifacts, address.source)
    entries = registry.libraries()
    names = [entry.name for entry in entries]
    if not names:
        raise InputError("the store contains no library", where=str(address), fix=fix)
    if library is not None and library not in names:
        raise InputError(
            f"there is no library {library!r}", where=str(address), fix=f"existing libraries: {', '.join(names)}"
        )
    if library is None and searches:
        library = max(entries, key=lambda entry: _last_work(registry, entry)).name
    return registry, library or names[0]


def _last_work(registry: Registry, library: Library) -> datetime:
    search = registry.newest_search(library.name)
    times = [library.last_run, search.began if search else None]
    return max((time for time in times if time), default=datetime.fromtimestamp(0, UTC))
