"""CPU cores and memory that this process may use; in a container, the container's limits count."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")  # files of version 2, and below a folder for each controller those of version 1


def available_cpus() -> int:
    """Return the number of CPU cores that this process may use, at least 1.

    A container's limit may be a fraction of a core; Ray counts whole ones.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("cpu.max").partition(" ")
    if not quota:
        quota, period = _read("cpu/cpu.cfs_quota_us"), _read("cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):  # `max` and -1 mean no limit
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def free_memory() -> int:
    """Return the free memory in bytes; what files only keep cached there counts as free."""
    free = psutil.virtual_memory().available  # of the host
    for limit_file, usage_file, statistics_file, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        limit, usage = _read(limit_file), _read(usage_file)
        if limit.isdigit() and usage.isdigit():  # `max` means no limit
            used = int(usage) - _statistic(statistics_file, cached)  # the kernel drops that cache before it refuses
            free = min(free, max(0, int(limit) - max(0, used)))
    return free


def _statistic(file: str, name: str) -> int:
    """Return a number of a file with lines of a name and a number; 0 if it has none."""
    values = dict(line.split(" ", 1) for line in _read(file).splitlines() if " " in line)
    return int(values.get(name, 0))


def _read(name: str) -> str:
    try:
        return (_CGROUP / name).read_text().strip()
    except OSError:
        return ""
