"""Checks of a machine's folders, disks, shared memory, ports and limits."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from pathlib import Path

from orchestrator.doctor.checks import Check, checked, doubtful, faulty, passed, passed_over
from orchestrator.plan.quantities import format_bytes

_GB = 10**9
_LEAST_DISK, _ENOUGH_DISK = 1 * _GB, 10 * _GB
_RAY_FULL = 0.95  # share of a disk in use above which Ray refuses work
_ENOUGH_SHARED = 1 * _GB  # containers have 64 MB by default
_ENOUGH_FILES = 4096  # as Ray warns
_SHARED_MEMORY = Path("/dev/shm")
PORTS = {5000: "MLflow's pages", 6379: "Ray's head", 8265: "Ray's dashboard"}
_WORKER_PORTS = range(10002, 20000)  # that Ray gives to its workers
_FEW_PORTS = 1000


@checked("storage")
def check_storage(root: Path) -> Check:
    """Check that files can be written in the storage folder, and the space there."""
    return _check_folder(root, "storage.root")


@checked("cache")
def check_cache(cache: Path) -> Check:
    """Check that files can be written in the cache folder, and the space there."""
    return _check_folder(cache, "storage.cache")


def _check_folder(folder: Path, key: str) -> Check:
    place = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        return faulty(f"no files can be written in {place} ({error.strerror})", f"choose a writable folder as {key}")
    free = shutil.disk_usage(place).free
    found = f"{folder}, {format_bytes(free)} free"
    fix = f"free space there, or choose a folder on another disk as {key}"
    if free < _LEAST_DISK:
        return faulty(found, fix)
    return doubtful(found, fix) if free < _ENOUGH_DISK else passed(found)


@checked("Ray's folder")
def check_ray_folder() -> Check:
    """Check that Ray can write its files, and that the disk is not so full that it refuses work."""
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    tempfile.TemporaryFile(dir=folder).close()
    usage = shutil.disk_usage(folder)
    found = f"{folder}, {format_bytes(usage.free)} free"
    if usage.free < _LEAST_DISK or 1 - usage.free / usage.total > _RAY_FULL:
        return doubtful(found, "free space there, or set RAY_TMPDIR to a folder on another disk: Ray may refuse work")
    return passed(found)


@checked("shared memory")
def check_shared_memory() -> Check:
    """Check the size of the shared memory, in which Ray keeps its objects."""
    if not _SHARED_MEMORY.is_dir():
        return passed_over("this system has no /dev/shm")
    total = shutil.disk_usage(_SHARED_MEMORY).total
    found = f"{_SHARED_MEMORY}, {format_bytes(total)}"
    if total < _ENOUGH_SHARED:
        return doubtful(found, "give the container more (docker --shm-size=4g): without it, Ray uses a slow disk")
    return passed(found)


@checked("open files")
def check_open_files() -> Check:
    """Check how many files a process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return passed("no limit")
    found = f"{soft} for each process"
    return passed(found) if soft >= _ENOUGH_FILES else doubtful(found, "raise the limit first: ulimit -n 65536")


@checked("ports")
def check_ports() -> Check:
    """Check which of the ports that Ray and MLflow use by default are free on this machine."""
    used = [port for port in PORTS if not _is_free(port)]
    left = sum(map(_is_free, _WORKER_PORTS))
    if used:
        names = ", ".join(f"{port} ({PORTS[port]})" for port in used)
        fix = "in use by another process, perhaps your own; others are chosen with `ttmoe ui --port`, and for a cluster"
        return doubtful(f"not free: {names}", f"{fix} with `ray start --port --dashboard-port`")
    if left < _FEW_PORTS:
        found = f"{left} of Ray's ports {_WORKER_PORTS.start} to {_WORKER_PORTS.stop - 1} are free"
        return doubtful(found, "end what uses them, or give others to `ray start` (--min-worker-port)")
    return passed(f"{', '.join(map(str, PORTS))} and {left} of Ray's for workers are free")


def _is_free(port: int) -> bool:
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a minute ago is free
        try:
            opened.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
