"""Where the files of a registered version lie, and how they get here from a server."""

from __future__ import annotations

import hashlib
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import mlflow.artifacts
from mlflow.exceptions import MlflowException

from orchestrator.registry.store import Store
from orchestrator.registry.versions import Version
from ttmoe.errors import InputError


def fetch(store: Store, version: Version) -> Path:
    """The version's folder: in place in a local store; else copied once to ``artifact_root/fetched``.

    Raises InputError when the files are gone.
    """
    where = f"{version.name} version {version.version}"
    folder = local_folder(version.uri)
    if folder is None:
        return download(store, version.uri, fetched_place(store, version.name, version.version, version.uri), where)
    if not folder.is_dir():
        raise InputError(
            f"its files are gone: {folder}",
            where=where,
            fix="bring the storage folder back to where it was",
        )
    return folder


def read_file(store: Store, version: Version, name: str) -> str:
    """The text of one of the version's files; from a server that file alone is copied."""
    place = local_folder(version.uri) or fetched_place(store, version.name, version.version, version.uri)
    if place.is_dir():
        return (place / name).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        where = f"{version.name} version {version.version}, {name}"
        return download(store, f"{version.uri}/{name}", Path(scratch) / "file", where).read_text(encoding="utf-8")


def artifact_uri(store: Store, run_id: str, folder: str) -> str:
    """Where a folder of a run's artifacts lies."""
    return f"{store.client.get_run(run_id).info.artifact_uri}/{folder}"


def local_folder(uri: str) -> Path | None:
    """The folder that an artifact address names on this machine, or None where a server has it."""
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path)) if uri.startswith("file:") else None


def fetched_place(store: Store, name: str, number: int, uri: str) -> Path:
    """Where the copy of a version's folder is kept."""
    key = hashlib.sha256(f"{store.uri} {uri}".encode()).hexdigest()[:12]
    return store.artifact_root / "fetched" / f"{name}-{number}-{key}"


def download(store: Store, uri: str, place: Path, where: str) -> Path:
    """Copy what the address names to ``place``, whole or not at all, unless it is there.

    Raises InputError, which names ``where``, when it cannot be had.
    """
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        try:
            got = mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=store.uri)
        except (MlflowException, OSError) as error:
            raise InputError(
                f"its files cannot be fetched ({error})", where=where, fix="check the server and its artifact store"
            ) from error
        try:
            Path(got).rename(place)
        except OSError:
            if not place.exists():  # otherwise another process was first
                raise
    return place
