"""Select a registered expert: ``TASK``, ``TASK@v3``, ``TASK@candidate`` or ``TASK --version 3``."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.registry import Registry, Version
from orchestrator.registry.versions import CANDIDATE, CHAMPION
from ttmoe.errors import InputError

CURRENT = (CHAMPION, CANDIDATE)
"""The aliases of current versions, in the order of preference."""


def choose_version(
    registry: Registry, library: str, name: str, number: int | None = None, *, aliases: Sequence[str] = CURRENT
) -> Version:
    """Return the version that a user selects.

    Args:
        registry: The registry.
        library: The library.
        name: ``TASK``, ``TASK@v3``, ``TASK@3`` or ``TASK@ALIAS``.
        number: Version number (``--version``).
        aliases: The first of these aliases that exists selects the version, if ``name`` and ``number`` do not.

    Raises:
        InputError: If there is no such expert or version.
    """
    task, _, mark = name.partition("@")
    versions = task_versions(registry, library, task)
    if number is None and mark.removeprefix("v").isdigit():
        number, mark = int(mark.removeprefix("v")), ""
    if number is not None:
        matches = [v for v in versions if v.version == number and (not mark or mark in v.aliases)]
    else:
        matches = [v for alias in ((mark,) if mark else aliases) for v in versions if alias in v.aliases]
    if matches:
        return matches[0]
    existing = ", ".join(" ".join([f"v{v.version}", *v.aliases]) for v in versions)
    raise InputError(
        f"expert {task!r} has no version {number if number is not None else mark or ' or '.join(aliases)!r}",
        where=f"library {library}",
        fix=f"select one of them with --version: {existing}",
    )


def task_versions(registry: Registry, library: str, task: str) -> list[Version]:
    """Return all versions of a task, oldest first.

    Raises:
        InputError: If there are none.
    """
    experts = registry.experts(library, every=True)
    if versions := [version for version in experts if version.task == task]:
        return versions
    tasks = sorted({version.task for version in experts})
    names = f"{', '.join(tasks[:30]) or 'none'}{', ...' if len(tasks) > 30 else ''}"
    raise InputError(f"there is no expert {task!r}", where=f"library {library}", fix=f"registered experts: {names}")


def version_label(version: Version) -> str:
    """Return the label of a version in messages: ``animals v3``."""
    return f"{version.task} v{version.version}"
