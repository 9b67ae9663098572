"""The limits of a container, as its cgroup states them."""

from __future__ import annotations

import os

import pytest

from cluster import machine


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """A function that writes a cgroup's files; the machine has 8 cores."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{text}\n")

    return write


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_the_cores_of_a_container(cgroup, limit, cores):
    if limit:
        cgroup(cpu_DOT_max=limit)
    assert machine.available_cpus() == cores


@pytest.mark.parametrize(("quota", "cores"), [(-1, 8), (350000, 3)])
def test_the_cores_of_a_container_of_the_first_version(cgroup, quota, cores):
    cgroup(cpu__cpu_DOT_cfs_quota_us=quota, cpu__cpu_DOT_cfs_period_us=100000)
    assert machine.available_cpus() == cores


def test_the_memory_of_a_container(cgroup):
    before = machine.free_memory()
    cgroup(memory_DOT_max="max", memory_DOT_current=5)
    assert machine.free_memory() > before / 2
    cgroup(memory_DOT_max=1000, memory_DOT_current=400)
    assert machine.free_memory() == 600


@pytest.mark.parametrize("folder", ["", "memory__"])
def test_the_cache_of_files_in_a_container_is_free(cgroup, folder):
    limit, usage = ("memory_limit_in_bytes", "memory_usage_in_bytes") if folder else ("memory_max", "memory_current")
    files = {limit: 1000, usage: 900, "memory_stat": f"anon 5\n{'total_' if folder else ''}inactive_file 700\nslab 9"}
    cgroup(**{folder + name.replace("memory_", "memory_DOT_", 1): text for name, text in files.items()})
    assert machine.free_memory() == 800
