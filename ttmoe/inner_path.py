"""Paths below a folder whose names come from a config, a registry or a file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ttmoe.errors import InputError


def inner_path(folder: Path, name: str, *, of: str, where: str) -> Path:
    """Return the path of a name below a folder.

    Args:
        folder: The folder.
        name: Relative path in it.
        of: What the folder is, for the error message.
        where: Where the name comes from, for the error message.

    Raises:
        InputError: If the name would lead out of the folder, or is empty.
    """
    if not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise InputError(f"{name!r} is not a path inside {of}", where=where, fix="write a relative path without ..")
    return folder / name
