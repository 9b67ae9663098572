"""The folder that cached trunks share: entries, the locks that keep processes apart, and the room they may take.

An entry is ``<key>/``: shards and ``index.json``. Who uses one holds a shared lock on its index. Who makes one holds
the lock ``.<key>.lock`` and works in ``.<key>.part/``, which becomes the entry when it is whole. Room is counted and
made under ``.lock``. All are file locks, which die with their process: a free lock tells what a killed one left.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

INDEX = "index.json"
POLL = 0.2  # seconds between two tries for a lock that another process holds
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def exclusive_lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock ``path`` alone; ``waiting`` is called again and again while another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:  # open for writing: over NFS an exclusive lock needs it
        while not _lock(file.fileno(), fcntl.LOCK_EX):
            waiting()
            time.sleep(POLL)
        yield


def hold_entry(entry: Path, index: Mapping[str, Any]) -> int | None:
    """A descriptor that keeps ``entry`` from eviction until it is closed; None where it is not whole, or not ``index``.

    The entry then counts as used now.
    """
    path = entry / INDEX
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    with ExitStack() as stack:
        stack.callback(os.close, number)
        fcntl.flock(number, fcntl.LOCK_SH)  # it may be in the middle of its eviction, and is gone when that is over
        if not _is_whole(entry, index) or not os.path.samestat(path.stat(), os.fstat(number)):
            return None
        os.utime(number)
        stack.pop_all()
    return number


def publish(entry: Path, index: Mapping[str, Any]) -> int:
    """Turn the scratch of ``entry``, its shards all written, into the entry; a descriptor as of ``hold_entry``."""
    scratch = scratch_of(entry)
    (scratch / INDEX).write_text(json.dumps(index, indent=1))
    number = os.open(scratch / INDEX, os.O_RDONLY)
    with ExitStack() as stack:
        stack.callback(os.close, number)
        fcntl.flock(number, fcntl.LOCK_SH)  # before others see it: it cannot be evicted before its maker reads it
        os.rename(scratch, entry)
        stack.pop_all()
    return number


def reserve_space(entry: Path, sizes: Mapping[str, int], budget: int) -> bool:
    """Make the scratch of ``entry`` with files of ``sizes`` bytes, evicting the least recently used entries for it.

    To be called by the holder of the entry's lock. False, and nothing is evicted, where ``budget`` bytes cannot hold
    it beside the entries in use and those being made. Raises OSError where the disk is full.
    """
    with exclusive_lock(entry.parent / ".lock"):
        _remove_leftovers(entry)
        if not _make_room(entry.parent, sum(sizes.values()), budget):
            return False
        scratch_of(entry).mkdir()
        for name, size in sizes.items():
            _allocate(scratch_of(entry) / name, size)
    return True


def scratch_of(entry: Path) -> Path:
    """Where an entry is made."""
    return entry.with_name(f".{entry.name}.part")


def lock_of(entry: Path) -> Path:
    """The lock of who makes it."""
    return entry.with_name(f".{entry.name}.lock")


def _is_whole(entry: Path, index: Mapping[str, Any]) -> bool:
    try:
        found = json.loads((entry / INDEX).read_text())
        return found == index and all((entry / name).stat().st_size == size for name, size in index["files"].items())
    except (OSError, ValueError):
        return False


def _lock(number: int, kind: int) -> bool:
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_leftovers(entry: Path) -> None:
    """A torn entry of this key, half-evicted ones, this key's scratch (its lock is ours), scratch with no maker."""
    torn = [path for path in entry.parent.glob("[!.]*") if not (path / INDEX).is_file()]
    for path in {entry, *torn}:
        shutil.rmtree(path, ignore_errors=True)
    for scratch in entry.parent.glob(".*.part"):
        with scratch.with_suffix(".lock").open("ab") as file:
            if scratch == scratch_of(entry) or _lock(file.fileno(), fcntl.LOCK_EX):
                shutil.rmtree(scratch, ignore_errors=True)


def _make_room(folder: Path, need: int, budget: int) -> bool:
    entries = [path for path in folder.iterdir() if path.is_dir()]
    used = sum(map(_size, entries))
    with ExitStack() as stack:
        doomed = []
        for entry in sorted((path for path in entries if (path / INDEX).is_file()), key=_last_used):
            if used + need <= budget:
                break
            file = stack.enter_context((entry / INDEX).open("r+b"))
            if _lock(file.fileno(), fcntl.LOCK_EX):
                doomed.append(entry)
                used -= _size(entry)
        if used + need > budget:
            return False
        for entry in doomed:
            (entry / INDEX).unlink()  # first: without it the rest is no entry any more
            shutil.rmtree(entry)
    return True


def _last_used(entry: Path) -> int:
    return (entry / INDEX).stat().st_mtime_ns


def _size(entry: Path) -> int:
    """Bytes of its shards; of one being made too, since they are allocated at once."""
    return sum(path.stat().st_size for path in entry.iterdir() if path.name != INDEX)


def _allocate(path: Path, size: int) -> None:
    """A file of ``size`` bytes that the disk has set aside, so that a disk too full shows now and not hours later."""
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # no such call on this system or file system
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            file.truncate(size)
