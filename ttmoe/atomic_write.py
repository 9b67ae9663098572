"""Write a file atomically. Imported also where no tensor is touched, so it imports no torch."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def name_full_disk(path: Path) -> Iterator[None]:
    """Add ``path`` to an error of a full disk within the context: one that a write raises names no file."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS and error.filename is None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, data: bytes, *, synchronize: bool = True) -> None:
    """Write ``data`` to ``path``. A crash leaves the previous file or none, never a partial one.

    Several processes, on several hosts too, may write the same path at once.

    Args:
        path: The file.
        data: Its content.
        synchronize: Wait until the data is on the disk. Otherwise the file may be damaged after a power failure.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with name_full_disk(path), temporary.open("wb") as file:
            file.write(data)
            if synchronize:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
