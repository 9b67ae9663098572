"""What each node of a Ray cluster reports: its own checks, its versions, and whether it sees the storage folder."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from orchestrator.doctor.checks import Check, checked, faulty, passed
from orchestrator.pool.capacity import Node
from workers.hardware import package_version

_SAME = ("ttmoe", "torch", "ray", "transformers", "mlflow")
_SECONDS = 300  # a first import of torch on each node, from a shared file system
_TEXT = "written by the driver"


@dataclass(frozen=True)
class NodeReport:
    """What one node reports.

    Attributes:
        checks: Its own checks.
        versions: Its versions of Python and of the packages that must be the same everywhere.
        storage: What is wrong with its view of the storage folder; empty if nothing is.
    """

    checks: tuple[Check, ...]
    versions: Mapping[str, str]
    storage: str = ""


def ask_nodes(
    nodes: Sequence[Node], checks: Sequence[Callable[[], Check]], root: Path | None = None
) -> dict[str, NodeReport]:
    """Let every node make the checks, read a file in the storage folder, and write one there.

    Args:
        nodes: Nodes of the cluster.
        checks: The checks.
        root: The storage folder; None on this machine alone.

    Returns:
        The report of each node by its name.

    Raises:
        InputError: If a node does not answer; it names the node.
    """
    from orchestrator.pool.ray_workers import call_on_nodes

    if root is None:
        return _named(nodes, call_on_nodes(nodes, partial(report_of_node, checks, None), _SECONDS))
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".doctor-", dir=root) as folder:
        Path(folder, "driver").write_text(_TEXT)
        reports = _named(nodes, call_on_nodes(nodes, partial(report_of_node, checks, Path(folder)), _SECONDS))
        written = len(list(Path(folder).iterdir())) - 1
        unread = "this machine does not see the file that it wrote"
        complete = written == len(reports)
        return {
            name: report if complete or report.storage else NodeReport(report.checks, report.versions, unread)
            for name, report in reports.items()
        }


def report_of_node(checks: Sequence[Callable[[], Check]], folder: Path | None) -> NodeReport:
    """Return the report of the node on which this runs."""
    storage = _storage_fault(folder) if folder else ""
    return NodeReport(tuple(check() for check in checks), versions_here(), storage)


def versions_here() -> dict[str, str]:
    """Return the versions that must be the same on all machines of a cluster."""
    return {"Python": platform.python_version(), **{name: package_version(name) for name in _SAME}}


def _storage_fault(folder: Path) -> str:
    try:
        if Path(folder, "driver").read_text() != _TEXT:
            return "it reads another file than was written"
        NamedTemporaryFile(dir=folder, delete=False).close()
    except OSError as error:
        return f"it cannot use {folder.parent} ({error.strerror})"
    return ""


@checked("versions")
def check_versions(reports: Mapping[str, NodeReport], own: Mapping[str, str]) -> Check:
    """Check that all nodes have the same versions as this machine.

    Args:
        reports: The report of each node.
        own: The versions of this machine.
    """
    by_place = {**{node: report.versions for node, report in reports.items()}, "this machine": own}
    different = [name for name in own if len({versions[name] for versions in by_place.values()}) > 1]
    if not different:
        text = ", ".join(f"{name} {found}" for name, found in own.items())
        return passed(f"the same on {len(reports)} nodes and this machine: {text}")
    found = "; ".join(f"{name}: {_by_place(by_place, name)}" for name in different)
    return faulty(found, "install the same versions on every node")


@checked("shared storage")
def check_shared_storage(reports: Mapping[str, NodeReport], root: Path) -> Check:
    """Check that every node sees and writes the storage folder."""
    faults = [f"{node}: {report.storage}" for node, report in reports.items() if report.storage]
    if faults:
        return faulty("; ".join(faults), "give a folder that all nodes share as storage.root")
    return passed(f"{len(reports)} nodes read and write {root}")


def _by_place(versions: Mapping[str, Mapping[str, str]], name: str) -> str:
    return ", ".join(f"{each[name] or 'none'} on {place}" for place, each in versions.items())


def _named(nodes: Sequence[Node], reports: Sequence[NodeReport]) -> dict[str, NodeReport]:
    """Return the reports by the name of the node; several nodes on one machine have an id behind its name."""
    shared = {name for name, count in Counter(node.name for node in nodes).items() if count > 1}
    names = [f"{node.name} ({node.id[:6]})" if node.name in shared else node.name for node in nodes]
    return dict(zip(names, reports, strict=True))
