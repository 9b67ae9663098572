"""Experts that a config names by version or alias: they are taken from the registry as they are, and not trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.schema import Config
from ttmoe.base import Base
from ttmoe.errors import InputError
from ttmoe.expert_files import Manifest, read_manifest
from workers.data.prepared import PreparedTask

if TYPE_CHECKING:
    from orchestrator.registry import Registry, Version

KINDS = {"classify": "text"}
"""Kinds that ``TextBank`` writes into a manifest, and their names in a library."""


def find_named_experts(config: Config, registry: Registry | None) -> dict[str, Version]:
    """Return the registered version of each task whose ``expert`` is given, read with one query for all.

    Raises:
        InputError: If a task has no such version.
    """
    named = {task: entry.expert for task, entry in config.tasks.items() if entry.expert}
    if not named:
        return {}
    versions = registry.experts(config.library, every=True) if registry else []
    found = {}
    for task, name in named.items():
        of_task = [version for version in versions if version.task == task]
        matches = [each for each in of_task if name.version == each.version or name.alias in each.aliases]
        if not matches:
            existing = ", ".join(" ".join([f"v{each.version}", *each.aliases]) for each in of_task)
            fix = f"registered: {existing}" if existing else f"add one: ttmoe experts import FOLDER --task {task}"
            what = f"library {config.library} has no expert {name} of this task"
            raise InputError(what, where=f"tasks.{task}.expert", fix=fix)
        found[task] = matches[0]
    return found


def read_named_expert(registry: Registry, version: Version, base: Base, data: PreparedTask) -> Manifest:
    """Read the manifest of a named expert, and check that it is of this base and answers the task's rows.

    Raises:
        InputError: If its files are missing, it is of another base or kind, or rows have labels that it does not know.
    """
    where, label = f"tasks.{version.task}", f"v{version.version}"
    registry.check_files(version)
    manifest = read_manifest(registry.fetch(version))
    if manifest.base["digest"] != base.digest:
        what = f"{label} was trained on another base: {manifest.base['id']}, {manifest.base['digest'][:12]}"
        raise InputError(what, where=f"{where}.expert", fix="name a version of the library's base, or train the task")
    kind = KINDS.get(manifest.kind, manifest.kind)
    if kind != data.kind:
        raise InputError(f"{label} is of kind {kind}", where=f"{where}.kind", fix=f"write {kind}, and its columns")
    unknown = [name for name in data.label_names if name not in manifest.labels and kind != "choice"]
    if unknown:
        fix = f"map them with `label.names`, or leave their rows out with `where`; its labels: {_some(manifest.labels)}"
        raise InputError(f"{label} has no label {_some(unknown)}", where=f"{where}.label", fix=fix)
    return manifest


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
