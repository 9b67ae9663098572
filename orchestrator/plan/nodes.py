"""Nodes that a run can use, found without starting anything on them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from orchestrator.pool.capacity import Node

RAY_MEMORY_SHARE = 0.7  # of the free memory; Ray reserves the rest for its object store
# psutil reports the memory of the host, so the limits of a container are read from its cgroup (version 2 and 1).
_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_nodes() -> list[Node]:
    """Return the nodes of the cluster of ``RAY_ADDRESS``; if it is not set, this machine as one node."""
    if os.environ.get("RAY_ADDRESS"):
        from cluster.local import ray_session
        from orchestrator.pool.ray_workers import cluster_nodes

        with ray_session():
            return cluster_nodes()
    import torch

    gpus = torch.cuda.device_count()
    gpu_memory = min((torch.cuda.get_device_properties(i).total_memory for i in range(gpus)), default=0)
    memory = int(RAY_MEMORY_SHARE * free_memory())
    return [Node("this machine", float(os.cpu_count() or 1), float(gpus), memory, gpu_memory)]


def free_memory() -> int:
    """Return the free memory of this machine, or of this container if it has a limit, in bytes."""
    free = psutil.virtual_memory().available
    for limit_file, usage_file in _CGROUP_FILES:
        limit, usage = _read(limit_file), _read(usage_file)
        if limit.isdigit() and usage.isdigit():  # the text `max` means no limit
            free = min(free, max(0, int(limit) - int(usage)))
    return free


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
