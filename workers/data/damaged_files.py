"""Damaged files of a cache: removed where they are found, so that they are made again."""

from __future__ import annotations

import shutil
from pathlib import Path


def remove_entry(path: Path) -> None:
    """Remove a file, or a folder that somebody made in its place, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_damaged(path: Path) -> str:
    """Remove a damaged file; return what the user has to do if this is refused, such as in a cache of another user."""
    try:
        remove_entry(path)
    except OSError:
        return f"somebody who may write to {path.parent} has to delete this file; or choose another storage.cache"
    return ""
