"""What there is to run on, asked without starting anything."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.pool.capacity import Node

# Of the free memory, what Ray hands out: it sets the rest aside for the objects that travel between processes.
OFFERED = 0.7
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_nodes() -> list[Node]:
    """The nodes of the cluster that ``RAY_ADDRESS`` names; without it this machine, which a run would take whole."""
    if os.environ.get("RAY_ADDRESS"):
        from cluster.local import ray_session
        from orchestrator.pool.ray_workers import cluster_nodes

        with ray_session():
            return cluster_nodes()
    import torch

    gpus = torch.cuda.device_count()
    each = min((torch.cuda.get_device_properties(i).total_memory for i in range(gpus)), default=0)
    return [Node("this machine", float(os.cpu_count() or 1), float(gpus), int(OFFERED * free_memory()), each)]


def free_memory() -> int:
    """Bytes that are free on this machine, or in the container that it is."""
    lines = dict(line.split(":") for line in _read("/proc/meminfo").splitlines())
    try:
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except KeyError:  # no Linux: what there is in all
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, used in _LIMITS:
        if _read(limit).isdigit() and _read(used).isdigit():  # `max` is no limit
            free = min(free, max(0, int(_read(limit)) - int(_read(used))))
    return free


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
