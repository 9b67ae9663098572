"""Files of registered versions: their location, and their download from a tracking server."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow.exceptions import MlflowException

from orchestrator.registry.artifact_folders import has_files, local_folder
from orchestrator.registry.store import Store
from orchestrator.registry.versions import Version
from ttmoe.errors import InputError
from ttmoe.inner_path import inner_path

_RESTORE = "move the storage folder back to its previous location, or make them again with `ttmoe run`"


def fetch(store: Store, version: Version) -> Path:
    """Return a local folder with the version's files.

    With a local store this is the artifact folder itself. From a tracking server the folder is downloaded once to
    ``artifact_root/fetched``.

    Raises:
        InputError: The files are missing or cannot be downloaded.
    """
    where = f"{version.name} version {version.version}"
    folder = local_folder(store, version.uri)
    if folder is None:
        return download(store, version.uri, download_path(store, version.name, version.version, version.uri), where)
    if not folder.is_dir():
        raise InputError(f"its files are missing: {folder}", where=where, fix=_RESTORE)
    return folder


def version_has_files(store: Store, version: Version) -> bool:
    """Return whether a version's files are there; without a request: those on a tracking server count as there."""
    return has_files(store, version.uri)


def check_files(store: Store, version: Version) -> None:
    """Raise InputError if an expert's files are gone, or if the weights on a tracking server are not the registered."""
    where = f"{version.name} version {version.version}"
    if not has_files(store, version.uri):
        what = f"its files are missing or damaged: {local_folder(store, version.uri)}"
        raise InputError(what, where=where, fix=_RESTORE)
    if local_folder(store, version.uri) is None:
        # A copy that was fetched earlier says nothing about the server.
        with tempfile.TemporaryDirectory() as scratch:
            weights = download(store, f"{version.uri}/expert.safetensors", Path(scratch) / "file", where)
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if digest != version.tags.get("weights_digest", digest):
            raise InputError(f"the server has other weights: {digest[:12]}", where=where, fix=_RESTORE)


def read_json(store: Store, version: Version, name: str) -> dict[str, Any]:
    """Return the object in one of the version's JSON files.

    Raises:
        InputError: As ``read_file``; or if the file is damaged.
    """
    try:
        return dict(json.loads(read_file(store, version, name)))
    except (ValueError, TypeError) as error:
        where = f"{version.name} version {version.version}"
        raise InputError(f"its file {name} is damaged: {error}", where=where, fix=_RESTORE) from error


def read_file(store: Store, version: Version, name: str) -> str:
    """Return the text of one of the version's files.

    If the version is on a tracking server and was not fetched, only this file is downloaded.

    Raises:
        InputError: The file is missing or cannot be downloaded.
    """
    where = f"{version.name} version {version.version}, {name}"
    local = local_folder(store, version.uri)
    folder = local or download_path(store, version.name, version.version, version.uri)
    if local or folder.is_dir():
        try:
            return (folder / name).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"the file cannot be read ({error})", where=where, fix=_RESTORE) from error
    with tempfile.TemporaryDirectory() as scratch:
        return download(store, f"{version.uri}/{name}", Path(scratch) / "file", where).read_text(encoding="utf-8")


def download_path(store: Store, name: str, number: int, uri: str) -> Path:
    """Return where the downloaded copy of a version's folder is stored.

    Args:
        store: An open store; its URI is part of the path, so copies from two servers differ.
        name: Name of the registered model.
        number: Version number.
        uri: The version's source URI.
    """
    key = hashlib.sha256(f"{store.uri} {uri}".encode()).hexdigest()[:12]
    return fetched_path(store, f"{name}-{number}-{key}")


def fetched_path(store: Store, name: str) -> Path:
    """Return where a downloaded folder is stored; raise InputError for a name that would lead elsewhere."""
    return inner_path(store.artifact_root / "fetched", name, of="the folder of downloads", where=str(store.uri))


def download(store: Store, uri: str, target: Path, where: str) -> Path:
    """Download a file or folder to ``target`` and return ``target``. If ``target`` exists, do nothing.

    The download is moved to ``target`` when it is complete, so ``target`` is never partial.

    Args:
        store: An open store.
        uri: Artifact URI of the file or folder.
        target: Path of the copy.
        where: Description of the object for the error message.

    Raises:
        InputError: The download failed.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            copy = mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=store.uri)
        except (MlflowException, OSError) as error:
            raise InputError(
                f"its files cannot be downloaded ({error})",
                where=where,
                fix="check the tracking server and its artifact store",
            ) from error
        try:
            Path(copy).rename(target)
        except OSError:
            if not target.exists():  # it exists if another process finished first
                raise
    return target
