"""The checks of ``ttmoe doctor`` in their order: of this machine, or of every node of the cluster of RAY_ADDRESS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from cluster.attaching import cluster_address
from orchestrator.config.schema import Config
from orchestrator.doctor.checks import Check, checked, merge_nodes, passed, passed_over
from orchestrator.doctor.device_check import check_devices
from orchestrator.doctor.machine_checks import (
    check_cache,
    check_open_files,
    check_ports,
    check_ray_folder,
    check_shared_memory,
    check_storage,
)
from orchestrator.doctor.node_reports import NodeReport, ask_nodes, check_shared_storage, check_versions, versions_here
from orchestrator.doctor.ray_check import check_ray
from orchestrator.doctor.service_checks import check_clock, check_hub, check_mlflow, check_tracking, clock_addresses
from orchestrator.doctor.software_checks import check_deepspeed, check_packages, check_python
from orchestrator.doctor.temporary_folder import TemporaryFolder
from orchestrator.doctor.training_check import check_training
from orchestrator.plan.folders import LibraryFolders


def examine(place: Config) -> Iterator[Check]:
    """Make all checks, and yield each as soon as it is made. Nothing is left behind.

    Args:
        place: Config whose storage, MLflow store and resources are checked; its base and tasks are not.
    """
    folders, address = LibraryFolders.of(place), cluster_address()
    each_node: list[Callable[[], Check]] = [
        check_python,
        check_packages,
        check_deepspeed,
        check_ray_folder,
        check_shared_memory,
        check_open_files,
        partial(check_tracking, place.store),
        partial(check_clock, clock_addresses(place.store)),
        check_hub,
    ]
    if not address:
        yield from (check() for check in [*each_node, check_ports])
    yield (storage := check_storage(folders.root))
    yield check_cache(folders.cache)
    with ExitStack() as stack:
        started = check_ray(stack)
        yield started
        if started.verdict == "failed":
            if address:  # the reason may be on this machine
                yield from (check() for check in each_node)
            yield passed_over_as("training", "Ray does not start")
            return
        yield from _node_checks([*each_node, check_devices] if address else [check_devices], folders.root, address)
        if storage.verdict == "failed":
            yield passed_over_as("training", "no files can be written in the storage folder")
            return
        folder = TemporaryFolder.below(folders.root, "ttmoe-doctor-")
        stack.callback(folder.remove)
        yield check_mlflow(folder.path / "runs")
        yield check_training(place, folder.path)


def passed_over_as(name: str, reason: str) -> Check:
    """Return a check that was not made."""
    return checked(name)(lambda: passed_over(reason))()


def _node_checks(checks: list[Callable[[], Check]], root: Path, address: str | None) -> Iterator[Check]:
    from orchestrator.pool.ray_workers import cluster_nodes

    reports: dict[str, NodeReport] = {}

    @checked("nodes")
    def ask() -> Check:
        nodes = sorted(cluster_nodes(), key=lambda node: node.name)
        reports.update(ask_nodes(nodes, checks, root if address else None))
        return passed(", ".join(reports))

    asked = ask()
    if address or asked.verdict == "failed":
        yield asked
    if not reports:
        return
    yield from merge_nodes({node: report.checks for node, report in reports.items()})
    if address:
        yield check_versions(reports, versions_here())
        yield check_shared_storage(reports, root)
