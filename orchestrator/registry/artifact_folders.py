"""Local folders of artifacts: where an artifact URI lies on this machine, and whether its files are there."""

from __future__ import annotations

import urllib.parse
import urllib.request
from pathlib import Path

from orchestrator.registry.store import Store

_MAIN_FILES = ("expert.safetensors", "MLmodel")  # a version's folder has one of them; literals, as no torch is imported


def local_folder(store: Store, uri: str) -> Path | None:
    """Return the local path of a ``file:`` URI, or None for any other URI.

    If nothing is there, and the store's artifact folder has the same path below it, that is returned: a storage folder
    that was moved keeps its libraries.
    """
    if not uri.startswith("file:"):
        return None
    path = Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path))
    root = store.artifact_root
    if root.name in path.parts and not path.exists():
        below = path.parts[len(path.parts) - path.parts[::-1].index(root.name) :]
        if (moved := root.joinpath(*below)).exists():
            return moved
    return path


def has_files(store: Store, uri: str) -> bool:
    """Return whether the folder of a version has its main file; True, without a request, if it is not local."""
    folder = local_folder(store, uri)
    return folder is None or any(_has_content(folder / name) for name in _MAIN_FILES)


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
