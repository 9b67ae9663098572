"""The store and library of a command that reads an existing library."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.config.store_address import store_uri
from orchestrator.registry import Registry
from ttmoe.errors import InputError


def open_library(root: Path, library: str | None) -> tuple[Registry, str]:
    """Open the store of a storage root and select a library.

    Args:
        root: The storage root. MLFLOW_TRACKING_URI, if set, names another store.
        library: Name of the library; None selects the one with the newest run.

    Returns:
        The registry and the library's name.

    Raises:
        InputError: The store or the library does not exist.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or store_uri(root)
    fix = "create one with `ttmoe run quickstart`, or name another storage root with --root"
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InputError("there is no library in this folder", where=str(root), fix=fix)
    registry = Registry.open(uri, root.resolve() / "mlartifacts")
    names = [entry.name for entry in registry.libraries()]
    if not names:
        raise InputError("the store contains no library", where=uri, fix=fix)
    if library is not None and library not in names:
        raise InputError(f"there is no library {library!r}", where=uri, fix=f"existing libraries: {', '.join(names)}")
    return registry, library or names[0]
