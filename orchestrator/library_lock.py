"""One driver at a time for each library."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ttmoe.errors import InputError


@contextmanager
def library_lock(home: Path) -> Iterator[None]:
    """Hold the library in ``home``. The system frees the lock when the process ends, however it ends.

    Raises InputError where another driver holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    path = home / "driver.lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, 32).decode().strip()
        os.close(file)
        raise InputError(
            f"another run of this library is under way (process {holder})",
            where=str(path),
            fix="wait for it to end, or stop it; what it has finished is kept",
        ) from None
    os.truncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    try:
        yield
    finally:
        os.close(file)
