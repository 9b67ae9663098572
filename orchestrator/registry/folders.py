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
    if version.uri.startswith("file:"):
        folder = Path(urllib.request.url2pathname(urllib.parse.urlparse(version.uri).path))
        if not folder.is_dir():
            raise InputError(
                f"its files are gone: {folder}",
                where=f"{version.name} version {version.version}",
                fix="bring the storage folder back to where it was",
            )
        return folder
    key = hashlib.sha256(f"{store.uri} {version.uri}".encode()).hexdigest()[:12]
    place = store.artifact_root / "fetched" / f"{version.name}-{version.version}-{key}"
    return place if place.is_dir() else _download(store, version, place)


def artifact_uri(store: Store, run_id: str, folder: str) -> str:
    """Where a folder of a run's artifacts lies."""
    return f"{store.client.get_run(run_id).info.artifact_uri}/{folder}"


def _download(store: Store, version: Version, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        try:
            got = mlflow.artifacts.download_artifacts(version.uri, dst_path=folder, tracking_uri=store.uri)
        except (MlflowException, OSError) as error:
            raise InputError(
                f"its files cannot be fetched ({error})",
                where=f"{version.name} version {version.version}",
                fix="check the server and its artifact store",
            ) from error
        try:
            Path(got).rename(place)  # whole or not at all
        except OSError:
            if not place.is_dir():  # another process was first
                raise
    return place
