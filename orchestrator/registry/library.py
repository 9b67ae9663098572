"""The store and library of a command that reads an existing library."""

from __future__ import annotations

from orchestrator.config.store_address import StoreAddress
from orchestrator.registry import Registry
from ttmoe.errors import InputError


def open_library(address: StoreAddress, library: str | None) -> tuple[Registry, str]:
    """Open a store and select a library.

    Args:
        address: The store.
        library: Name of the library; None selects the one with the newest run.

    Returns:
        The registry and the library's name.

    Raises:
        InputError: The store or the library does not exist.
    """
    fix = "create one with `ttmoe run quickstart`, or name another storage root with --root, or a store with --uri"
    if address.is_missing:
        raise InputError("there is no library in this store", where=str(address), fix=fix)
    registry = Registry.open(address.uri, address.artifacts, address.source)
    names = [entry.name for entry in registry.libraries()]
    if not names:
        raise InputError("the store contains no library", where=str(address), fix=fix)
    if library is not None and library not in names:
        raise InputError(
            f"there is no library {library!r}", where=str(address), fix=f"existing libraries: {', '.join(names)}"
        )
    return registry, library or names[0]
