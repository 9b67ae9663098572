"""Local folders of artifacts: where an artifact URI lies on this machine, and where new runs write.

A storage folder may be moved or copied as a whole. MLflow stores absolute addresses of artifacts, so what lies below
the present folder is preferred to what they name.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path

from orchestrator.config.store_address import sqlite_file
from orchestrator.registry.store import Store, experiment_name

_BUSY_TIMEOUT = 60.0  # seconds
# Weights, and the file with their digest; literals, as no torch is imported.
_EXPERT_FILES, _ROUTER_FILES = ("expert.safetensors", "expert.json"), ("router.safetensors", "router.json")


def local_folder(store: Store, uri: str) -> Path | None:
    """Return the local path of a ``file:`` URI, or None for any other URI.

    If the store's artifact folder has the same path below it, that is returned: a storage folder that was moved keeps
    its libraries, and a copy reads its own files.
    """
    if not uri.startswith("file:"):
        return None
    path = _path(uri)
    root = store.artifact_root
    if root.name in path.parts and not path.is_relative_to(root):
        below = path.parts[len(path.parts) - path.parts[::-1].index(root.name) :]
        if (present := root.joinpath(*below)).exists():
            return present
    return path


def write_below_root(store: Store, library: str) -> None:
    """Let the runs of a library write below the storage folder, if this was moved or copied since they were made.

    Only the holder of the library's lease may call it. A store that does not lie in the storage folder is not changed.
    """
    file = sqlite_file(store.uri)
    if file is None or file.parent != store.artifact_root.resolve().parent:
        return
    # MLflow cannot change where an experiment or a run writes.
    with closing(sqlite3.connect(file, timeout=_BUSY_TIMEOUT)) as database, database:
        for name in (experiment_name(library, search=search) for search in (False, True)):
            query = "SELECT experiment_id, artifact_location FROM experiments WHERE name = ?"
            for number, location in database.execute(query, (name,)).fetchall():
                _relocate(database, number, location, store.artifact_root / name)


def _relocate(database: sqlite3.Connection, experiment: int, old: str, folder: Path) -> None:
    new = folder.as_uri()
    if not old.startswith("file:") or _path(old).resolve() == folder.resolve():
        return
    database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment))
    if folder.is_dir() or not _path(old).exists():  # otherwise the file of the store was moved without the artifacts
        database.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?)"
            " WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
            (new, len(old) + 1, experiment, len(old) + 1, f"{old}/"),
        )


def has_files(store: Store, uri: str) -> bool:
    """Return whether the folder of a version has its files, unchanged; True, without a request, if it is not local.

    The digest of the weights is computed: files that were cut or altered are as good as gone.
    """
    folder = local_folder(store, uri)
    return folder is None or _are_whole(folder, *_EXPERT_FILES) or _is_whole_router(folder)


def _path(uri: str) -> Path:
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path))


def _is_whole_router(folder: Path) -> bool:
    """Return whether a router can answer: it has the files of its experts, which its lock names."""
    try:
        lock = dict(json.loads((folder / "lock.json").read_bytes()))
        whole = b"python_function" in (folder / "MLmodel").read_bytes() and _are_whole(folder, *_ROUTER_FILES)
    except (OSError, ValueError, TypeError):
        return False
    return whole and all(_are_whole(folder / "experts" / task, *_EXPERT_FILES) for task in lock)


def _are_whole(folder: Path, weights: str, manifest: str) -> bool:
    try:
        with (folder / weights).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return bool(json.loads((folder / manifest).read_bytes())["weights_digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False
