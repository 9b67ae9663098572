"""Check on every node of a cluster, before any work, that it has the base and sees the folder of the results."""

from __future__ import annotations

import os
import secrets
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.attaching import cluster_address
from cluster.local import ray_session
from orchestrator.pool.capacity import jobs_on_node
from ttmoe.base import Base
from ttmoe.errors import InputError
from workers.base.base_sources import check_base_on_node

if TYPE_CHECKING:
    from orchestrator.plan.planning import Plan  # imports torch, which no node needs for this

DOWNLOAD_SECONDS = 3600  # a large base comes over the network, once for each node


def check_nodes(plan: Plan) -> None:
    """Let every node that will run jobs find the base, and read a file in the storage folder.

    A node downloads the base if it does not have it. Does nothing without ``RAY_ADDRESS``.

    Raises:
        InputError: If a node has another base or none, or does not see the storage folder; it names the node.
    """
    if not cluster_address():
        return
    from orchestrator.pool.ray_workers import call_on_nodes

    root = plan.folders.root
    if len(plan.nodes) > 1 and not Path(plan.config.storage.root).is_absolute():
        what = "a relative path means another folder on each node of a cluster"
        raise InputError(what, where="storage.root", fix="give the absolute path of a folder that all nodes share")
    nodes = [node for node in plan.nodes if jobs_on_node(node, plan.resources)]
    root.mkdir(parents=True, exist_ok=True)
    mark = root / f".seen-{secrets.token_hex(8)}"
    mark.touch()
    try:
        with ray_session():
            call_on_nodes(nodes, partial(check_node, plan.base, plan.folders.cache, mark), DOWNLOAD_SECONDS)
    finally:
        mark.unlink(missing_ok=True)


def check_node(base: Base, cache: Path, mark: Path) -> None:
    """Check the node on which this runs.

    Args:
        base: The base as the driver has it.
        cache: Root folder of the cache.
        mark: A file in the storage folder.

    Raises:
        InputError: If the base or the file is missing.
    """
    if not mark.parent.is_dir() or mark.name not in os.listdir(mark.parent):
        what = f"it does not see {mark.parent} as this machine does"
        raise InputError(what, where="storage.root", fix="give a folder that all nodes share")
    check_base_on_node(base, cache)
