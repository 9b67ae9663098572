"""File lock that allows one driver at a time for each library."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.registry.file_locks import lock_file
from ttmoe.errors import InputError

LOCK_FILE = "driver.lock"


@contextmanager
def driver_lock(home: Path) -> Iterator[None]:
    """Hold the lock of the library in ``home``.

    The operating system releases the lock when the process ends, even if it is killed.

    Args:
        home: The library's folder, ``<root>/<library>``. It is created if missing.

    Raises:
        InputError: Another driver holds the lock, or the file system offers none.
    """
    home.mkdir(parents=True, exist_ok=True)
    path = home / LOCK_FILE
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
    except InputError:
        os.close(file)
        raise
    except BlockingIOError:
        holder = os.read(file, 32).decode().strip()
        os.close(file)
        raise InputError(
            f"another run of this library is in progress (process {holder})",
            where=str(path),
            fix="wait until it ends, or stop it; its finished experts are kept",
        ) from None
    os.truncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    try:
        yield
    finally:
        os.close(file)


def local_driver(home: Path) -> int | None:
    """Return the id of the process on this machine that holds the library's lock, or None if no process does."""
    try:
        file = os.open(home / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(file, 32).decode().strip() or 0)
    except OSError:  # the file system offers no locks, so no driver runs on it
        return None
    finally:
        os.close(file)
    return None
