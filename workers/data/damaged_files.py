"""Damaged files of a cache: removed where they are found, so that they are made again."""

from __future__ import annotations

from pathlib import Path


def remove_damaged(path: Path) -> str:
    """Remove a damaged file; return what the user has to do if this is refused, such as in a cache of another user."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return f"somebody who may write to {path.parent} has to delete this file; or choose another storage.cache"
    return ""
