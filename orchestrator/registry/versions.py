"""Registered versions of experts and routers: exactly one per spec hash, whatever crashed on the way."""

from __future__ import annotations

import hashlib
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from orchestrator.registry.store import TAG, Store, check_name, create_once, moment, pages, prefixed
from ttmoe.errors import InputError

CANDIDATE, CHAMPION = "candidate", "champion"
_METRIC = "metric."


@dataclass(frozen=True)
class Version:
    """One registered expert or router. ``tags`` are without our prefix; ``uri`` is where its folder lies."""

    name: str
    version: int
    library: str
    task: str
    spec_hash: str
    tags: dict[str, str]
    metrics: dict[str, float]
    aliases: tuple[str, ...]
    uri: str
    run_id: str
    created: datetime


def register(store: Store, library: str, task: str, spec_hash: str, upload: Callable[[], str], *, kind: str, run_id: str,
             tags: dict[str, Any], metrics: dict[str, float], description: str, promote: bool) -> Version:  # fmt: skip
    """Register what ``upload()`` puts in place (it returns the address), unless the spec has a version already.

    Safe to repeat after a crash at any point: the version appears together with its spec hash and after its files.
    """
    name = model_name(library, task)
    found = find(store, library, task, spec_hash)
    if found is None:
        own = {"library": library, "kind": kind, "task": task}
        create_once(lambda: store.client.create_registered_model(name, prefixed(own)))
        numbers = {f"{_METRIC}{key}": repr(float(value)) for key, value in metrics.items()}
        store.client.create_model_version(
            name, upload(), run_id, description=description, await_creation_for=0,
            tags=prefixed({**tags, **numbers, **own, "spec_hash": spec_hash}),
        )  # fmt: skip
        found = _one(store, library, task, spec_hash)
    wanted = {CANDIDATE, CHAMPION} if promote else {CANDIDATE}
    for alias in sorted(wanted.difference(found.aliases)):
        store.client.set_registered_model_alias(name, alias, str(found.version))
    return replace(found, aliases=tuple(sorted(wanted.union(found.aliases))))


def find(store: Store, library: str, task: str, spec_hash: str) -> Version | None:
    """The version of a spec, or None."""
    versions = _search(store, library, task, spec_hash)
    return _version(versions[0], _aliases(store, model_name(library, task))) if versions else None


def every_version(store: Store, library: str, kind: str) -> list[Version]:
    """All versions of the kind in the library, by task, oldest first; two queries, however many there are."""
    check_name(library, "library")
    query = f"tags.`{TAG}library` = '{library}' and tags.`{TAG}kind` = '{kind}'"
    client = store.client
    aliases = {
        model.name: model.aliases
        for model in pages(lambda token: client.search_registered_models(query, max_results=1000, page_token=token))
    }
    versions = pages(lambda token: client.search_model_versions(query, page_token=token))
    found = [_version(each, aliases.get(each.name, {})) for each in versions]
    return sorted(found, key=lambda each: (each.task, each.version))


def promote(store: Store, version: Version, alias: str = CHAMPION) -> None:
    """Point the alias at the version."""
    store.client.set_registered_model_alias(version.name, alias, str(version.version))


def by_alias(store: Store, library: str, task: str, alias: str) -> Version | None:
    """The version that an alias points at, or None."""
    try:
        found = store.client.get_model_version_by_alias(model_name(library, task), alias)
    except MlflowException as error:
        # MLflow says INVALID_PARAMETER_VALUE where the model is there and the alias is not.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return _version(found, _aliases(store, found.name))


def fetch(store: Store, version: Version) -> Path:
    """The version's folder: in place in a local store; from elsewhere copied once to ``artifact_root/fetched``.

    Raises InputError when the files are gone.
    """
    if version.uri.startswith("file:"):
        folder = Path(urllib.request.url2pathname(urllib.parse.urlparse(version.uri).path))
        if not folder.is_dir():
            raise InputError(f"its files are gone: {folder}", where=f"{version.name} version {version.version}",
                             fix="bring the storage folder back to where it was, or run the library again")  # fmt: skip
        return folder
    key = hashlib.sha256(f"{store.uri} {version.uri}".encode()).hexdigest()[:12]
    place = store.artifact_root / "fetched" / f"{version.name}-{version.version}-{key}"
    return place if place.is_dir() else _download(store, version, place)


def artifact_uri(store: Store, run_id: str, folder: str) -> str:
    """Where a folder of a run's artifacts lies."""
    return f"{store.client.get_run(run_id).info.artifact_uri}/{folder}"


def model_name(library: str, task: str) -> str:
    """The registered model's name."""
    check_name(library, "library")
    check_name(task, "task")
    return f"{library}.{task}"


def _download(store: Store, version: Version, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        try:
            got = mlflow.artifacts.download_artifacts(version.uri, dst_path=folder, tracking_uri=store.uri)
        except (MlflowException, OSError) as error:
            raise InputError(f"its files cannot be fetched ({error})", where=f"{version.name} version {version.version}",
                             fix="check the server and its artifact store") from error  # fmt: skip
        try:
            Path(got).rename(place)  # whole or not at all
        except OSError:
            if not place.is_dir():  # another process was first
                raise
    return place


def _one(store: Store, library: str, task: str, spec_hash: str) -> Version:
    """The first version of the spec; later ones, which only a request sent twice can make, are deleted."""
    first, *doubles = _search(store, library, task, spec_hash)
    for double in doubles:
        store.client.delete_model_version(double.name, double.version)
    return _version(first, {})


def _search(store: Store, library: str, task: str, spec_hash: str) -> list[ModelVersion]:
    check_name(spec_hash, "spec hash")
    query = f"name = '{model_name(library, task)}' and tags.`{TAG}spec_hash` = '{spec_hash}'"
    return sorted(store.client.search_model_versions(query), key=lambda each: int(each.version))


def _aliases(store: Store, name: str) -> dict[str, str]:
    return store.client.get_registered_model(name).aliases


def _version(found: ModelVersion, aliases: dict[str, str]) -> Version:
    tags = {key.removeprefix(TAG): value for key, value in found.tags.items()}
    metrics = {key.removeprefix(_METRIC): float(tags.pop(key)) for key in [*tags] if key.startswith(_METRIC)}
    named = tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(found.version)))
    return Version(found.name, int(found.version), tags["library"], tags["task"], tags["spec_hash"], tags, metrics,
                   named, found.source or "", found.run_id or "", moment(found.creation_timestamp))  # fmt: skip
