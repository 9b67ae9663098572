"""Experts as registered models ``<library>.<task>``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.registry.store import Store
from orchestrator.registry.uploads import upload_model
from orchestrator.registry.versions import (
    CANDIDATE,
    CHAMPION,
    Version,
    VersionMetadata,
    list_versions,
    model_name,
    register,
)
from ttmoe.errors import InputError

ROUTER = "router"


def register_expert(
    store: Store,
    library: str,
    task: str,
    spec_hash: str,
    folder: Path,
    run_id: str,
    tags: dict[str, Any],
    *,
    metrics: dict[str, float] | None = None,
    description: str = "",
    about: str = "",
    promote: bool = False,
    is_new: bool = False,
) -> Version:
    """Upload a verified expert to its run and register it as a version, at most one per spec hash.

    If the spec has a version, its files are not changed; only its aliases are set. A version whose files are gone is
    replaced.

    Args:
        store: An open store.
        library: Name of the library.
        task: Name of the task.
        spec_hash: Hash of the expert's spec.
        folder: The expert's files.
        run_id: The run that receives the files as artifacts.
        tags: Tags of the version, without the prefix ``ttmoe.``. The files must have the ``weights_digest`` among them.
        metrics: Metrics of the version; they are stored as tags.
        description: Description of the version in MLflow.
        about: Description of the registered model in MLflow.
        promote: Set the alias ``champion`` in addition to ``candidate``.
        is_new: Whether the spec is known to have no version, so that none is searched for.

    Raises:
        InputError: The task is called ``router``.
        WorkFailedError: The expert's files are missing, are others, or were not kept by the artifact store.
    """
    if task == ROUTER:
        raise InputError(
            "a task cannot be called 'router': this is the name of the library's router",
            where=f"tasks.{task}",
            fix="choose another name",
        )

    digest = tags.get("weights_digest")
    required = {"expert.json": None, "expert.safetensors": str(digest)} if digest else {}

    def upload() -> str:
        return upload_model(store, run_id, folder, "expert", required, model_name(library, task))

    metadata = VersionMetadata("expert", run_id, tags, metrics or {}, description, about)
    return register(store, library, task, spec_hash, upload, metadata, promote=promote, is_new=is_new)


def find_experts(store: Store, library: str, lock: Mapping[str, str]) -> dict[str, Version]:
    """Return the registered versions of a lock by task, read with two paged queries.

    Args:
        store: An open store.
        library: Name of the library.
        lock: Spec hash by task. Tasks whose spec has no version are left out.
    """
    return select_versions(list_versions(store, library, "expert"), lock)


def select_versions(versions: Iterable[Version], lock: Mapping[str, str]) -> dict[str, Version]:
    """Return those versions that a lock names, by task; of several with one spec, the oldest.

    Args:
        versions: Versions of experts, sorted by version number.
        lock: Spec hash by task.
    """
    found: dict[str, Version] = {}
    for version in versions:
        if lock.get(version.task) == version.spec_hash:
            found.setdefault(version.task, version)
    return found


def list_experts(store: Store, library: str, *, every: bool = False) -> list[Version]:
    """Return one version per task: the champion, or the candidate if none was promoted.

    Args:
        store: An open store.
        library: Name of the library.
        every: Return all versions instead.

    Returns:
        Versions sorted by task, then version number.
    """
    versions = list_versions(store, library, "expert")
    if every:
        return versions
    current = {version.task: version for version in versions if CANDIDATE in version.aliases}
    current |= {version.task: version for version in versions if CHAMPION in version.aliases}
    return [current[task] for task in sorted(current)]
