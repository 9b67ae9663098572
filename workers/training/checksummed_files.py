"""Files that carry the SHA-256 digest of their content in their first line."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ttmoe.atomic_write import write_atomically


class CorruptFileError(Exception):
    """The content of a file does not match its digest or its format."""


def write_checksummed(path: Path, data: bytes, *, synchronize: bool = True) -> None:
    """Write ``data`` behind its digest, atomically: a crash leaves the previous file or none.

    Several processes may write the same path at once. Without ``synchronize`` a power failure may leave a damaged file,
    which ``read_checksummed`` finds, but the disk is not waited for.

    Raises:
        OSError: If the file cannot be written. No partial file remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data, synchronize=synchronize)


def read_checksummed(path: Path) -> bytes:
    """Return the data of a file written by ``write_checksummed``.

    Raises:
        CorruptFileError: If the data does not match the digest.
        FileNotFoundError: If the file is missing.
    """
    digest, _, data = path.read_bytes().partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise CorruptFileError(f"{path} is damaged: its content does not match its checksum")
    return data
