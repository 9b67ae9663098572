"""Locks of files, and the error where the file system has none."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

from ttmoe.errors import InputError

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def lock_file(descriptor: int, operation: int, path: Path) -> None:
    """Lock an open file with ``fcntl.flock``.

    Args:
        descriptor: Descriptor of the file.
        operation: ``fcntl.LOCK_EX`` and the like.
        path: The file, for the error.

    Raises:
        BlockingIOError: Another process holds the lock, and the operation does not wait.
        InputError: The file system offers no locks.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise InputError(
            f"the file system offers no file locks ({error.strerror})",
            where=str(path),
            fix="choose a storage.root on another one, or mount it with locks (Lustre: flock; NFS: its lock service)",
        ) from error
