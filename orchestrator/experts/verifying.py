"""``ttmoe experts verify``: compare registered files with their record, and check the scores of the experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.config.store_address import StoreAddress
from orchestrator.experts.base_folder import base_of_version
from orchestrator.experts.probing import ProbeBank, VersionMismatchError
from orchestrator.experts.version_selection import choose_version, task_versions, version_label
from orchestrator.registry import Registry, Version
from orchestrator.registry.library import open_library
from ttmoe.errors import InputError, WorkFailedError

GROUP_SIZE = 16
"""Experts in one batch of probes."""
FIX = "restore its files from a backup, or remove it with `ttmoe experts rm` and retrain it with `ttmoe run`"


def verify_experts(
    store: StoreAddress, library: str | None, names: Sequence[str], every: bool, console: Console
) -> None:
    """Verify experts and print one line for each: ``ok``, or ``FAILED`` with the reason.

    Args:
        store: The store to open.
        library: Name of the library; None selects the one that ran last.
        names: Experts to verify, as in ``choose_version``. Empty selects the current version of every expert.
        every: Verify all versions of the experts.
        console: Console to print to.

    Raises:
        InputError: If there is no such expert.
        WorkFailedError: If an expert failed.
    """
    registry, library = open_library(store, library)
    versions = _select(registry, library, names, every)
    if not versions:
        raise InputError("there are no experts to verify", where=f"library {library}", fix="train one with `ttmoe run`")
    failed, fixes = [], dict[str, None]()
    for version, failure, fix in _verify(registry, library, versions):
        label = version_label(version)
        console.print(f"{label}: {failure or 'ok'}", highlight=False, markup=False, soft_wrap=True)
        if failure:
            failed.append(label)
            fixes[fix] = None
    if failed:
        what = f"{len(failed)} of {len(versions)} experts failed: {', '.join(failed)}"
        raise WorkFailedError(what, where=f"library {library}", fix="; ".join(fixes))


def _select(registry: Registry, library: str, names: Sequence[str], every: bool) -> list[Version]:
    if not names:
        return registry.experts(library, every=every)
    if every:
        return [version for name in names for version in task_versions(registry, library, name)]
    return [choose_version(registry, library, name) for name in names]


def _verify(registry: Registry, library: str, versions: list[Version]) -> Iterator[tuple[Version, str, str]]:
    """Yield each version, its failure, empty if there is none, and what to do about it.

    Each base is loaded once for all its experts.
    """
    current = registry.experts(library)
    for digest in dict.fromkeys(version.tags.get("base_digest", "") for version in versions):
        same_base = [version for version in versions if version.tags.get("base_digest", "") == digest]
        with_files = [version for version in same_base if registry.has_files(version)]
        try:
            probes = ProbeBank.open(base_of_version(registry, (with_files or same_base)[0]))
        except (InputError, OSError, ValueError, KeyError) as error:  # no base, or an unreadable manifest
            fix = getattr(error, "fix", "") or FIX
            yield from ((version, _failure(error), fix) for version in same_base)
            continue
        for start in range(0, len(same_base), GROUP_SIZE):
            for version, failure in _verify_group(registry, probes, same_base[start : start + GROUP_SIZE], current):
                yield version, failure, FIX


def _verify_group(
    registry: Registry, probes: ProbeBank, versions: list[Version], current: list[Version]
) -> Iterator[tuple[Version, str]]:
    """Probe each expert alone, then all that passed in one batch; a single one together with another expert."""
    failures: dict[str, str] = {}
    passed: dict[str, Path] = {}
    for version in versions:
        label = version_label(version)
        try:
            folder = registry.fetch(version)
            probes.probe_alone(version, folder)
            registry.check_files(version)  # last: of a damaged file, the others say more
            passed[label] = folder
        except (InputError, VersionMismatchError) as error:
            failures[label] = _failure(error)
    if len(passed) == 1:
        passed |= _other_expert(registry, probes, versions, current)
    failures |= probes.probe_together(passed)
    for version in versions:
        yield version, failures.get(version_label(version), "")


def _other_expert(
    registry: Registry, probes: ProbeBank, versions: list[Version], current: list[Version]
) -> dict[str, Path]:
    """Return label and folder of a current expert of the same base that passes alone; empty if there is none."""
    labels = {version_label(version) for version in versions}
    for version in current:
        if version_label(version) not in labels:
            try:
                folder = registry.fetch(version)
                probes.probe_alone(version, folder)
            except (InputError, VersionMismatchError):
                continue
            return {version_label(version): folder}
    return {}


def _failure(error: Exception) -> str:
    if isinstance(error, InputError):
        return f"FAILED: {error.what} ({error.where})" if error.where else f"FAILED: {error.what}"
    return f"FAILED: {error}"
