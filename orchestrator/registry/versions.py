"""Registered versions of experts and routers: exactly one per spec hash, even after a crash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from orchestrator.registry.artifact_folders import has_files
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
BASE_FOLDER = "base_folder"
"""Tag of a router: the folder in which its base was last seen."""
_METRIC = "metric."


@dataclass(frozen=True)
class Version:
    """One registered version of an expert or router.

    Attributes:
        name: Name of the registered model, ``<library>.<task>``.
        version: Version number.
        tags: Tags without the prefix ``ttmoe.`` and without metrics.
        aliases: Sorted aliases that point to the version.
        uri: URI of the version's folder of artifacts.
        run_id: The run that created the version.
    """

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
    """Description of a new version.

    Attributes:
        kind: ``expert`` or ``router``.
        run_id: The run that holds the artifacts.
        tags: Tags without the prefix ``ttmoe.``.
        metrics: Metrics; they are stored as tags.
        description: Text about the version, shown in the MLflow UI.
        about: Text about the registered model, shown in the MLflow UI.
    """

    kind: str
    run_id: str
    tags: dict[str, Any]
    metrics: dict[str, float]
    description: str
    about: str = ""


def register(
    store: Store,
    library: str,
    task: str,
    spec_hash: str,
    upload: Callable[[], str],
    metadata: VersionMetadata,
    *,
    promote: bool,
    is_new: bool = False,
) -> Version:
    """Create the version of a spec unless it exists, and set its aliases.

    The call can be repeated after a crash at any point, because a version is created after the upload of its files
    and together with its spec hash. Versions of the spec whose files are gone are deleted first.

    Args:
        store: An open store.
        library: Name of the library.
        task: Name of the task; ``router`` for the router.
        spec_hash: Hash of the spec.
        upload: Uploads the files and returns their URI. It is called only if the spec has no version.
        metadata: Description of the version.
        promote: Set the alias ``champion`` in addition to ``candidate``.
        is_new: Whether the spec is known to have no version, so that none is searched for.
    """
    versions = []
    for found in [] if is_new else _search(store, library, task, spec_hash):
        if has_files(store, found.source or ""):
            versions.append(found)
        else:
            ignore_missing(partial(store.client.delete_model_version, found.name, found.version))
    aliases = _aliases(store, versions[0].name) if versions else {}
    if not versions:
        versions = _create(store, library, task, spec_hash, upload, metadata)
    version = _version(_remove_duplicates(store, versions), aliases)
    required = {CANDIDATE, CHAMPION} if promote else {CANDIDATE}
    for alias in sorted(required.difference(version.aliases)):
        store.client.set_registered_model_alias(version.name, alias, str(version.version))
    return replace(version, aliases=tuple(sorted(required.union(version.aliases))))


def _create(
    store: Store, library: str, task: str, spec_hash: str, upload: Callable[[], str], metadata: VersionMetadata
) -> list[ModelVersion]:
    name = model_name(library, task)
    model_tags = {"library": library, "kind": metadata.kind, "task": task}
    is_new = create_once(lambda: store.client.create_registered_model(name, to_mlflow_tags(model_tags), metadata.about))
    # Models of earlier versions have no description; one that a user wrote is kept.
    if metadata.about and not is_new and not store.client.get_registered_model(name).description:
        store.client.update_registered_model(name, metadata.about)
    metric_tags = {f"{_METRIC}{key}": repr(float(value)) for key, value in metadata.metrics.items()}
    version = store.client.create_model_version(
        name,
        upload(),
        metadata.run_id,
        tags=to_mlflow_tags({**metadata.tags, **metric_tags, **model_tags, "spec_hash": spec_hash}),
        description=metadata.description,
        await_creation_for=0,
    )
    return _search(store, library, task, spec_hash) if store.may_duplicate else [version]


def find_version(store: Store, library: str, task: str, spec_hash: str) -> Version | None:
    """Return the version of a task's spec, or None if there is none."""
    versions = _search(store, library, task, spec_hash)
    return _version(versions[0], _aliases(store, model_name(library, task))) if versions else None


def list_versions(store: Store, library: str, kind: str) -> list[Version]:
    """Return all versions of a kind in the library, read with two paged queries.

    Args:
        store: An open store.
        library: Name of the library.
        kind: ``expert`` or ``router``.

    Returns:
        Versions sorted by task, then version number.
    """
    check_name(library, "library")
    query = f"tags.`{TAG}library` = '{library}' and tags.`{TAG}kind` = '{kind}'"
    client = store.client
    models = all_pages(lambda token: client.search_registered_models(query, max_results=1000, page_token=token))
    aliases = {model.name: model.aliases for model in models}
    entries = all_pages(lambda token: client.search_model_versions(query, page_token=token))
    versions = [_version(entry, aliases.get(entry.name, {})) for entry in entries]
    return sorted(versions, key=lambda version: (version.task, version.version))


def promote(store: Store, version: Version, alias: str = CHAMPION) -> None:
    """Point the alias, by default ``champion``, to the version."""
    store.client.set_registered_model_alias(version.name, alias, str(version.version))


def tag_version(store: Store, version: Version, tags: dict[str, Any]) -> None:
    """Set tags of a version; the prefix ``ttmoe.`` is added to their names."""
    for key, value in to_mlflow_tags(tags).items():
        store.client.set_model_version_tag(version.name, str(version.version), key, value)


def find_by_alias(store: Store, library: str, task: str, alias: str) -> Version | None:
    """Return the version that an alias of a task points to, or None if the alias is not set."""
    try:
        entry = store.client.get_model_version_by_alias(model_name(library, task), alias)
    except MlflowException as error:
        # MLflow raises INVALID_PARAMETER_VALUE if the model exists and the alias does not.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return _version(entry, _aliases(store, entry.name))


def model_name(library: str, task: str) -> str:
    """Return the name of a task's registered model. Raise InputError if a part of it is not a valid name."""
    check_name(library, "library")
    check_name(task, "task")
    return f"{library}.{task}"


def _remove_duplicates(store: Store, versions: list[ModelVersion]) -> ModelVersion:
    """Keep the first version of a spec and delete the others, which only a repeated request creates."""
    first, *duplicates = versions
    for duplicate in duplicates:
        ignore_missing(partial(store.client.delete_model_version, duplicate.name, duplicate.version))
    return first


def _search(store: Store, library: str, task: str, spec_hash: str) -> list[ModelVersion]:
    check_name(spec_hash, "spec hash")
    query = f"name = '{model_name(library, task)}' and tags.`{TAG}spec_hash` = '{spec_hash}'"
    return sorted(store.client.search_model_versions(query), key=lambda version: int(version.version))


def _aliases(store: Store, name: str) -> dict[str, str]:
    return store.client.get_registered_model(name).aliases


def _version(entry: ModelVersion, aliases: dict[str, str]) -> Version:
    """Convert MLflow's version and the aliases of its model."""
    tags = {key.removeprefix(TAG): value for key, value in entry.tags.items()}
    library, _, task = entry.name.partition(".")
    metrics = {key.removeprefix(_METRIC): float(tags.pop(key)) for key in [*tags] if key.startswith(_METRIC)}
    return Version(
        name=entry.name,
        version=int(entry.version),
        library=library,
        task=task,
        spec_hash=tags.get("spec_hash", ""),  # a tag that somebody deleted; no spec has this hash
        tags=tags,
        metrics=metrics,
        aliases=tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(entry.version))),
        uri=entry.source or "",
        run_id=entry.run_id or "",
        created=to_datetime(entry.creation_timestamp),
    )
