"""Registered versions of experts and routers: exactly one per spec hash, whatever crashed on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from orchestrator.registry.store import (
    TAG,
    Store,
    all_pages,
    check_name,
    create_once,
    ignore_missing,
    to_datetime,
    to_mlflow_tags,
)

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


@dataclass(frozen=True)
class VersionMetadata:
    """What a new version says of itself."""

    kind: str
    run_id: str
    tags: dict[str, Any]
    metrics: dict[str, float]
    description: str


def register(
    store: Store,
    library: str,
    task: str,
    spec_hash: str,
    upload: Callable[[], str],
    entry: VersionMetadata,
    *,
    promote: bool,
) -> Version:
    """Register what ``upload()`` puts in place (it returns the address), unless the spec has a version.

    Safe to repeat after a crash at any point: a version appears after its files, and with its spec hash.
    """
    versions = _search(store, library, task, spec_hash)
    aliases = _aliases(store, versions[0].name) if versions else {}
    if not versions:
        versions = _create(store, library, task, spec_hash, upload, entry)
    found = _version(_only(store, versions), aliases)
    wanted = {CANDIDATE, CHAMPION} if promote else {CANDIDATE}
    for alias in sorted(wanted.difference(found.aliases)):
        store.client.set_registered_model_alias(found.name, alias, str(found.version))
    return replace(found, aliases=tuple(sorted(wanted.union(found.aliases))))


def _create(
    store: Store, library: str, task: str, spec_hash: str, upload: Callable[[], str], entry: VersionMetadata
) -> list[ModelVersion]:
    name = model_name(library, task)
    own = {"library": library, "kind": entry.kind, "task": task}
    create_once(lambda: store.client.create_registered_model(name, to_mlflow_tags(own)))
    numbers = {f"{_METRIC}{key}": repr(float(value)) for key, value in entry.metrics.items()}
    made = store.client.create_model_version(
        name,
        upload(),
        entry.run_id,
        tags=to_mlflow_tags({**entry.tags, **numbers, **own, "spec_hash": spec_hash}),
        description=entry.description,
        await_creation_for=0,
    )
    # Only a server can have done it twice: its client repeats a request whose answer was lost.
    return _search(store, library, task, spec_hash) if store.is_remote else [made]


def find_version(store: Store, library: str, task: str, spec_hash: str) -> Version | None:
    """The version of a spec, or None."""
    versions = _search(store, library, task, spec_hash)
    return _version(versions[0], _aliases(store, model_name(library, task))) if versions else None


def list_versions(store: Store, library: str, kind: str) -> list[Version]:
    """All versions of the kind in the library, by task, oldest first; two queries, however many there are."""
    check_name(library, "library")
    query = f"tags.`{TAG}library` = '{library}' and tags.`{TAG}kind` = '{kind}'"
    client = store.client
    models = all_pages(lambda token: client.search_registered_models(query, max_results=1000, page_token=token))
    aliases = {model.name: model.aliases for model in models}
    versions = all_pages(lambda token: client.search_model_versions(query, page_token=token))
    found = [_version(each, aliases.get(each.name, {})) for each in versions]
    return sorted(found, key=lambda each: (each.task, each.version))


def promote(store: Store, version: Version, alias: str = CHAMPION) -> None:
    """Point the alias at the version."""
    store.client.set_registered_model_alias(version.name, alias, str(version.version))


def find_by_alias(store: Store, library: str, task: str, alias: str) -> Version | None:
    """The version that an alias points at, or None."""
    try:
        found = store.client.get_model_version_by_alias(model_name(library, task), alias)
    except MlflowException as error:
        # MLflow says INVALID_PARAMETER_VALUE where the model is there and the alias is not.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return _version(found, _aliases(store, found.name))


def model_name(library: str, task: str) -> str:
    """The registered model's name."""
    check_name(library, "library")
    check_name(task, "task")
    return f"{library}.{task}"


def _only(store: Store, versions: list[ModelVersion]) -> ModelVersion:
    """The first of a spec's versions; later ones, which only a request sent twice can make, are deleted."""
    first, *doubles = versions
    for double in doubles:
        ignore_missing(partial(store.client.delete_model_version, double.name, double.version))
    return first


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
    return Version(
        name=found.name,
        version=int(found.version),
        library=tags["library"],
        task=tags["task"],
        spec_hash=tags["spec_hash"],
        tags=tags,
        metrics=metrics,
        aliases=named,
        uri=found.source or "",
        run_id=found.run_id or "",
        created=to_datetime(found.creation_timestamp),
    )
