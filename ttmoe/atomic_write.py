"""Write a file atomically. Imported also where no tensor is touched, so it imports no torch."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


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
        with temporary.open("wb") as file:
            file.write(data)
            if synchronize:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
