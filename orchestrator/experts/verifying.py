"""``ttmoe experts verify``: are the registered files still what was registered, and do they answer as they should?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.experts.base_folder import base_of_version
from orchestrator.experts.probing import ProbeBank, VersionMismatchError
from orchestrator.experts.version_selection import choose_version, task_versions, version_label
from orchestrator.registry import Registry, Version
from orchestrator.registry.library import open_library
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
        console.print(f"{version_label(version)}: {fault or 'good'}", highlight=False, markup=False, soft_wrap=True)
        failed += [version_label(version)] if fault else []
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
            bench = ProbeBank.open(base_of_version(registry, group[0]))
        except (InputError, OSError, ValueError, KeyError) as error:  # no base, or a manifest that cannot be read
            yield from ((version, _said(error)) for version in group)
            continue
        for start in range(0, len(group), TOGETHER):
            yield from _together(registry, bench, group[start : start + TOGETHER], others)


def _together(
    registry: Registry, bench: ProbeBank, versions: list[Version], others: list[Version]
) -> Iterator[tuple[Version, str]]:
    """Each one alone first; then those that are good beside one another, or one that is single beside another."""
    faults: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for version in versions:
        try:
            folders[version_label(version)] = folder = registry.fetch(version)
            bench.probe_alone(version, folder)
        except (InputError, VersionMismatchError) as error:
            faults[version_label(version)] = _said(error)
    good = {label: folder for label, folder in folders.items() if label not in faults}
    if len(good) == 1:
        good |= _neighbour(registry, bench, versions, others)
    differing = bench.probe_together(good)
    for version in versions:
        label = version_label(version)
        yield version, faults.get(label) or differing.get(label, "")


def _neighbour(registry: Registry, bench: ProbeBank, versions: list[Version], others: list[Version]) -> dict[str, Path]:
    """One more expert of the same base, that is whole."""
    own = {version_label(version) for version in versions}
    for other in others:
        if version_label(other) not in own:
            try:
                folder = registry.fetch(other)
                bench.probe_alone(other, folder)
            except (InputError, VersionMismatchError):
                continue
            return {version_label(other): folder}
    return {}


def _said(error: Exception) -> str:
    if isinstance(error, InputError):
        return f"FAILED: {error.what} ({error.where})" if error.where else f"FAILED: {error.what}"
    return f"FAILED: {error}"
