"""The cache folder of trunk states: entries, file locks between processes, and eviction.

An entry is the folder ``<key>/`` with shards and ``index.json``, which holds their digests. A process that reads an
entry holds a shared lock on its index. A process that creates one holds the lock ``.<key>.lock`` and writes to
``.<key>.part/``, which is renamed to ``<key>/`` when it is complete. Space is counted and freed under the lock
``.lock``. The system releases these locks when their process ends, so a ``.part`` folder with a free lock was left by a
killed process and is deleted.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ttmoe.atomic_write import DISK_FULL_ERRNOS, write_atomically
from ttmoe.base import sha256_of_file

INDEX = "index.json"
LOCK_POLL_SECONDS = 0.2  # between two attempts to take a lock that another process holds
_DIGESTS = "sha256"
UNUSABLE_ERRNOS = (
    *DISK_FULL_ERRNOS,
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # a cache of another user
    *(errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS),  # a file system without locks
)
"""Numbers of the errors of a folder in which nothing can be cached."""


@contextmanager
def exclusive_lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the file lock ``path`` exclusively; ``waiting`` is called repeatedly while another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:  # open for writing: over NFS an exclusive lock requires it
        while not _try_lock(file.fileno()):
            waiting()
            time.sleep(LOCK_POLL_SECONDS)
        yield


def open_entry(entry: Path, index: Mapping[str, Any]) -> int | None:
    """Open an entry for reading, protect it from eviction and mark it as used now.

    Args:
        entry: Folder of the entry.
        index: Expected content of its index.

    Returns:
        A file descriptor that protects the entry until it is closed; None if the entry is missing, incomplete or
        damaged, or has another index.
    """
    path = entry / INDEX
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for an eviction of the entry; it is missing afterwards
            if not _is_complete(entry, index) or not os.path.samestat(path.stat(), os.fstat(descriptor)):
                return None
        except OSError:  # the entry is missing, or the file system offers no locks
            return None
        with suppress(PermissionError):  # the entry of another user
            os.utime(descriptor)
        stack.pop_all()
    return descriptor


def publish_entry(entry: Path, index: Mapping[str, Any]) -> int:
    """Turn an entry's scratch folder, with all shards written, into the entry.

    Returns:
        A file descriptor as from ``open_entry``.
    """
    scratch = scratch_folder(entry)
    digests = {name: sha256_of_file(scratch / name) for name in index["files"]}
    write_atomically(scratch / INDEX, json.dumps({**index, _DIGESTS: digests}, indent=1).encode())
    descriptor = os.open(scratch / INDEX, os.O_RDONLY)
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # before the rename, so that no process evicts the new entry
        os.rename(scratch, entry)
        stack.pop_all()
    return descriptor


def reserve_space(entry: Path, sizes: Mapping[str, int], budget: int) -> bool:
    """Create an entry's scratch folder with allocated files, and evict the least recently used entries if necessary.

    The caller holds the entry's lock.

    Args:
        entry: Folder of the entry.
        sizes: Bytes of each file, by name.
        budget: Bytes that all entries may take.

    Returns:
        False if the budget cannot hold the entry beside the entries that are read or created now; then nothing is
        evicted.

    Raises:
        OSError: If the disk is full, or the folder cannot be used, see ``UNUSABLE_ERRNOS``.
    """
    with exclusive_lock(entry.parent / ".lock"):
        _remove_leftovers(entry)
        if not _evict(entry.parent, sum(sizes.values()), budget):
            return False
        scratch_folder(entry).mkdir()
        for name, size in sizes.items():
            _allocate(scratch_folder(entry) / name, size)
    return True


def scratch_folder(entry: Path) -> Path:
    """Return the folder in which an entry is created."""
    return entry.with_name(f".{entry.name}.part")


def creation_lock(entry: Path) -> Path:
    """Return the lock file of the process that creates an entry."""
    return entry.with_name(f".{entry.name}.lock")


def _is_complete(entry: Path, index: Mapping[str, Any]) -> bool:
    """Return whether the entry has this index, and files of the right sizes and digests."""
    try:
        actual = json.loads((entry / INDEX).read_text())
        digests, files = actual.pop(_DIGESTS, {}), {name: (entry / name).stat() for name in index["files"]}
        return (
            actual == index
            and digests.keys() == files.keys()
            and all(stat.st_size == index["files"][name] for name, stat in files.items())
            and all(_has_digest(entry / name, digests[name], stat.st_mtime_ns) for name, stat in files.items())
        )
    except (OSError, ValueError, AttributeError):
        return False


@lru_cache(maxsize=4096)
def _has_digest(path: Path, digest: str, modified: int) -> bool:
    """Compare a file with its digest: once in a process, until it is modified, as each of its experts opens entries."""
    return sha256_of_file(path) == digest


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_leftovers(entry: Path) -> None:
    """Remove incomplete entries, this entry, its scratch folder, and scratch folders of killed processes."""
    incomplete = [path for path in entry.parent.glob("[!.]*") if not (path / INDEX).is_file()]
    for path in {entry, *incomplete}:
        shutil.rmtree(path, ignore_errors=True)
    for scratch in entry.parent.glob(".*.part"):
        with suppress(PermissionError), scratch.with_suffix(".lock").open("ab") as file:
            if scratch == scratch_folder(entry) or _try_lock(file.fileno()):
                shutil.rmtree(scratch, ignore_errors=True)


def _evict(folder: Path, size: int, budget: int) -> bool:
    """Free space for ``size`` bytes; return False, and evict nothing, if the unused entries do not suffice."""
    entries = [path for path in folder.iterdir() if path.is_dir()]
    used = sum(map(_entry_bytes, entries))
    with ExitStack() as stack:
        evicted = []
        for entry in sorted((path for path in entries if (path / INDEX).is_file()), key=_last_used):
            if used + size <= budget:
                break
            try:
                file = stack.enter_context((entry / INDEX).open("r+b"))
            except PermissionError:  # the entry of another user
                continue
            if _try_lock(file.fileno()):
                evicted.append(entry)
                used -= _entry_bytes(entry)
        if used + size > budget:
            return False
        for entry in evicted:
            (entry / INDEX).unlink()  # first, so that an interrupted eviction leaves an incomplete entry
            shutil.rmtree(entry)
    return True


def _last_used(entry: Path) -> int:
    return (entry / INDEX).stat().st_mtime_ns


def _entry_bytes(entry: Path) -> int:
    """Return the bytes of an entry's files, also while it is created: they are allocated first.

    Its creator may publish or remove the folder meanwhile.
    """
    try:
        paths = [path for path in entry.iterdir() if path.name != INDEX and not path.name.startswith(".")]
        return sum(path.stat().st_size for path in paths)
    except FileNotFoundError:
        published = entry.with_name(entry.name.removeprefix(".").removesuffix(".part"))
        return _entry_bytes(published) if published != entry and published.is_dir() else 0


def _allocate(path: Path, size: int) -> None:
    """Create a file whose space is allocated on disk, so that a full disk is noticed before the computation."""
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # not supported by this system or file system
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
                raise
            file.truncate(size)
