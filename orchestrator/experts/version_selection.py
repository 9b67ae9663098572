"""Which registered expert a command means: ``TASK``, ``TASK@v3``, ``TASK@candidate`` or ``TASK --version 3``."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.registry import Registry, Version
from orchestrator.registry.versions import CANDIDATE, CHAMPION
from ttmoe.errors import InputError

NOW = (CHAMPION, CANDIDATE)


def choose_version(
    registry: Registry, library: str, name: str, number: int | None = None, *, aliases: Sequence[str] = NOW
) -> Version:
    """The version that ``name`` and ``--version`` say; where neither does, the first of ``aliases`` there is.

    Raises InputError for an expert or a version that is not there, naming those that are.
    """
    task, _, mark = name.partition("@")
    versions = task_versions(registry, library, task)
    if number is None and mark.removeprefix("v").isdigit():
        number, mark = int(mark.removeprefix("v")), ""
    if number is not None:
        found = [each for each in versions if each.version == number and (not mark or mark in each.aliases)]
    else:
        wanted = (mark,) if mark else aliases
        found = [each for alias in wanted for each in versions if alias in each.aliases]
    if found:
        return found[0]
    there = ", ".join(" ".join([f"v{each.version}", *each.aliases]) for each in versions)
    raise InputError(
        f"expert {task!r} has no version {number if number is not None else mark or ' or '.join(aliases)!r}",
        where=f"library {library}",
        fix=f"there are: {there}; name one with --version",
    )


def task_versions(registry: Registry, library: str, task: str) -> list[Version]:
    """All versions of a task, oldest first. Raises InputError where there is none, naming the tasks there are."""
    every = registry.experts(library, every=True)
    if found := [version for version in every if version.task == task]:
        return found
    tasks = sorted({version.task for version in every})
    raise InputError(
        f"there is no expert {task!r}",
        where=f"library {library}",
        fix=f"there are: {', '.join(tasks[:30]) or 'none yet'}{', ...' if len(tasks) > 30 else ''}",
    )


def version_label(version: Version) -> str:
    """How a version is called in what a user reads."""
    return f"{version.task} v{version.version}"
