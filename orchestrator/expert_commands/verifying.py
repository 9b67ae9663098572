"""``ttmoe experts verify``: are the registered files still what was registered, and do they answer as they should?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.expert_commands.choosing import choose_version, label_of, task_versions
from orchestrator.expert_commands.library_base import base_of
from orchestrator.expert_commands.probing import ProbeBench, VersionFaultError
from orchestrator.library import open_library
from orchestrator.registry import Registry, Version
from ttmoe.errors import InputError, WorkFailedError

TOGETHER = 16  # experts that are probed beside one another
FIX = "restore its files from a backup; or remove it with `ttmoe experts rm` and let `ttmoe run` train it again"


def verify_experts(root: Path, library: str | None, names: Sequence[str], every: bool, console: Console) -> None:
    """Check the named experts, or all current ones; with ``every`` all their versions. A line for each.

    Raises WorkFailedError that names those which failed.
    """
    registry, found = open_library(root, library)
    versions = _wanted(registry, found, names, every)
    if not versions:
        raise InputError("there is no expert to verify", where=f"library {found}", fix="let `ttmoe run` train one")
    failed = []
    for version, fault in _verify(registry, found, versions):
        console.print(f"{label_of(version)}: {fault or 'good'}", highlight=False, markup=False, soft_wrap=True)
        failed += [label_of(version)] if fault else []
    if failed:
        what = f"{len(failed)} of {len(versions)} experts failed: {', '.join(failed)}"
        raise WorkFailedError(what, where=f"library {found}", fix=FIX)


def _wanted(registry: Registry, library: str, names: Sequence[str], every: bool) -> list[Version]:
    if not names:
        return registry.experts(library, every=every)
    if every:
        return [version for name in names for version in task_versions(registry, library, name)]
    return [choose_version(registry, library, name) for name in names]


def _verify(registry: Registry, library: str, versions: list[Version]) -> Iterator[tuple[Version, str]]:
    """Each version and what is wrong with it, if anything; the experts of one base on one load of it."""
    others = registry.experts(library)
    for digest in dict.fromkeys(version.tags.get("base_digest", "") for version in versions):
        group = [version for version in versions if version.tags.get("base_digest", "") == digest]
        try:
            bench = ProbeBench.open(base_of(registry, group[0]))
        except (InputError, OSError, ValueError, KeyError) as error:  # no base, or a manifest that cannot be read
            yield from ((version, _said(error)) for version in group)
            continue
        for start in range(0, len(group), TOGETHER):
            yield from _together(registry, bench, group[start : start + TOGETHER], others)


def _together(
    registry: Registry, bench: ProbeBench, versions: list[Version], others: list[Version]
) -> Iterator[tuple[Version, str]]:
    """Each one alone first; then those that are good beside one another, or one that is single beside another."""
    faults: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for version in versions:
        try:
            folders[label_of(version)] = folder = registry.fetch(version)
            bench.probe_alone(version, folder)
        except (InputError, VersionFaultError) as error:
            faults[label_of(version)] = _said(error)
    good = {label: folder for label, folder in folders.items() if label not in faults}
    if len(good) == 1:
        good |= _neighbour(registry, bench, versions, others)
    differing = bench.probe_together(good)
    for version in versions:
        label = label_of(version)
        yield version, faults.get(label) or differing.get(label, "")


def _neighbour(
    registry: Registry, bench: ProbeBench, versions: list[Version], others: list[Version]
) -> dict[str, Path]:
    """One more expert of the same base, that is whole."""
    own = {label_of(version) for version in versions}
    for other in others:
        if label_of(other) not in own:
            try:
                folder = registry.fetch(other)
                bench.probe_alone(other, folder)
            except (InputError, VersionFaultError):
                continue
            return {label_of(other): folder}
    return {}


def _said(error: Exception) -> str:
    if isinstance(error, InputError):
        return f"FAILED: {error.what} ({error.where})" if error.where else f"FAILED: {error.what}"
    return f"FAILED: {error}"
