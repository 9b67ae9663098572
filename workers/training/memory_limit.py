"""Return freed memory to the operating system while training.

glibc keeps freed blocks of many sizes: with rows of many lengths this can be gigabytes.
"""

from __future__ import annotations

import ctypes

import psutil

_PAUSE_STEPS = 3  # steps between two returns, at least: memory that is needed again at once costs page faults
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only


def return_freed_memory() -> None:
    """Return freed memory to the operating system, if the C library supports it."""
    if _malloc_trim:
        _malloc_trim(0)


def private_bytes() -> int:
    """Return the resident memory of this process that is not shared with files or other processes, in bytes."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))  # `shared` is reported on Linux only


class MemoryLimit:
    """Returns freed memory to the operating system when the process takes more than ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self._steps = limit, _PAUSE_STEPS

    def after_step(self) -> None:
        """Return freed memory if the limit is exceeded, at most once in ``_PAUSE_STEPS + 1`` steps."""
        self._steps += 1
        if self._steps > _PAUSE_STEPS and private_bytes() > self.limit:
            self._steps = 0
            return_freed_memory()
