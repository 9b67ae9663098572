"""Freed memory goes back to the system: glibc keeps what rows of many lengths left in pieces, gigabytes of it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_PAUSE = 3  # steps between two trims, at least: memory that comes back at once is paid for in page faults
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def return_freed_memory() -> None:
    """Return what is freed, wherever it lies, if the system's allocator can."""
    if _trim:
        _trim(0)


def private_bytes() -> int:
    """Memory of this process that is no file's; 0 where the system does not say."""
    try:
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGESIZE")


class MemoryLimit:
    """Holds a training near the memory it is planned to take: above ``limit`` bytes, freed memory is returned."""

    def __init__(self, limit: int) -> None:
        self.limit, self._steps = limit, _PAUSE

    def after_step(self) -> None:
        """Look, and return memory if there is too much; not at every step."""
        self._steps += 1
        if self._steps > _PAUSE and private_bytes() > self.limit:
            self._steps = 0
            return_freed_memory()
