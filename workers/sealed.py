"""Files that are whole or not there, and that say so: the digest of what follows stands in their first line."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path


class DamagedError(Exception):
    """A file's content is not what was written."""


def write_sealed(path: Path, data: bytes) -> None:
    """Write ``data`` under its digest; a crash leaves the old file or none, and several processes may do it at once.

    Raises OSError as the system does; then nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with part.open("wb") as file:
            file.write(hashlib.sha256(data).hexdigest().encode() + b"\n")
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_sealed(path: Path) -> bytes:
    """What was written. Raises DamagedError where the digest is another, FileNotFoundError where there is no file."""
    digest, _, data = path.read_bytes().partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise DamagedError(f"{path} was altered or cut")
    return data
