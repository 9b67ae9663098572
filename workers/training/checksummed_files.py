"""Files that are whole or not there, and that say so: the digest of what follows stands in their first line."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ttmoe.expert_files import write_whole


class CorruptFileError(Exception):
    """A file's content is not what was written."""


def write_checksummed(path: Path, data: bytes) -> None:
    """Write ``data`` under its digest; a crash leaves the old file or none, and several processes may do it at once.

    Raises OSError as the system does; then nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def read_checksummed(path: Path) -> bytes:
    """What was written. Raises DamagedError where the digest is another, FileNotFoundError where there is no file."""
    digest, _, data = path.read_bytes().partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise CorruptFileError(f"{path} was altered or cut")
    return data
