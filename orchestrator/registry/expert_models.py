"""Experts in the registry: the registered model ``<library>.<task>``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.registry.store import Store
from orchestrator.registry.version_files import artifact_uri
from orchestrator.registry.versions import (
    CANDIDATE,
    CHAMPION,
    Version,
    VersionMetadata,
    list_versions,
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
    promote: bool = False,
) -> Version:
    """Upload a verified expert's folder to its run and register it; at most one version per spec hash.

    A spec that has a version keeps it, files included: versions never change. It becomes the candidate
    again, and the champion where ``promote`` says so. ``tags`` get our prefix; ``metrics`` stay with it.
    """
    if task == ROUTER:
        raise InputError(
            "a task cannot be called 'router': the library's router has that name",
            where=f"tasks.{task}",
            fix="choose another name",
        )

    def upload() -> str:
        store.client.log_artifacts(run_id, str(folder), "expert")
        return artifact_uri(store, run_id, "expert")

    entry = VersionMetadata("expert", run_id, tags, metrics or {}, description)
    return register(store, library, task, spec_hash, upload, entry, promote=promote)


def list_experts(store: Store, library: str, *, every: bool = False) -> list[Version]:
    """The library's experts by task: each task's champion, or its candidate where none was promoted.

    With ``every``, all versions.
    """
    versions = list_versions(store, library, "expert")
    if every:
        return versions
    current = {version.task: version for version in versions if CANDIDATE in version.aliases}
    current |= {version.task: version for version in versions if CHAMPION in version.aliases}
    return [current[task] for task in sorted(current)]
