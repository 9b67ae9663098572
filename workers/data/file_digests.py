"""SHA-256 digests of files. A file that did not change since it was last read is not read again.

``<cache>/digests/`` contains a small file for each digested path: what identifies the content at that path (device,
inode, size, and the times of modification and of status change) and the digest. A memo that cannot be read or written
is no error, because the digest can be computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from time import time_ns

from ttmoe.atomic_write import write_atomically
from ttmoe.base import sha256_of_file

SETTLING_NS = 60_000_000_000
"""Nanoseconds without a change after which a digest is kept. Earlier, a file could change again and its times would not
show it: within one tick of the file system's clock (up to 2 seconds), until a page that is written through a memory map
reaches the disk (30 seconds on Linux), or by as much as the clock of a file server is behind."""


def remembered_digest(path: Path, cache: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits.

    The file is read only if it changed since its digest was kept in the cache. Processes may share the cache.

    Args:
        path: The file.
        cache: Root folder of the cache.
    """
    name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()
    memo = cache / "digests" / name
    state = _state(path)
    with suppress(OSError, ValueError):
        match json.loads(memo.read_text()):
            case {"state": known, "digest": str(digest)} if known == state and len(digest) == 64:
                return digest
    started = time_ns()
    digest = sha256_of_file(path)
    if _state(path) == state and started - max(state[-2:]) > SETTLING_NS:
        with suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memo, json.dumps({"state": state, "digest": digest}).encode(), synchronize=False)
    return digest


def _state(path: Path) -> list[int]:
    with path.open("rb") as file:  # over NFS, opening a file is what asks the server for its times
        stat = os.fstat(file.fileno())
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
