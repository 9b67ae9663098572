"""Which library a command means, and its store: for the commands that read."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.registry import Registry
from ttmoe.errors import InputError


def tracking_uri(root: Path) -> str:
    """The store of the runs below ``root``, or the one that MLFLOW_TRACKING_URI names."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def open_library(root: Path, library: str | None) -> tuple[Registry, str]:
    """The registry, and the library: the one named, or the one that ran last.

    Raises InputError where there is none.
    """
    uri = tracking_uri(root)
    fix = "`ttmoe run quickstart` makes one; or name the folder of another with --root"
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InputError("there is no library here", where=str(root), fix=fix)
    registry = Registry.open(uri, root.resolve() / "mlartifacts")
    there = registry.libraries()
    if not there:
        raise InputError("the store holds no library yet", where=uri, fix=fix)
    names = [found.name for found in there]
    if library is not None and library not in names:
        raise InputError(f"there is no library {library!r}", where=uri, fix=f"there are: {', '.join(names)}")
    return registry, library or names[0]
