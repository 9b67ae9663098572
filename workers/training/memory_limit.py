"""Return freed memory to the operating system, while training and while a base is divided among processes.

glibc keeps freed blocks of many sizes: with rows of many lengths this can be gigabytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_PAUSE_STEPS = 3  # steps between two returns, at least: memory that is needed again at once costs page faults
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MB = 2**20


def return_freed_memory() -> None:
    """Return freed memory to the operating system, if the C library supports it."""
    if _malloc_trim:
        _malloc_trim(0)


@contextmanager
def returning_blocks() -> Iterator[None]:
    """Return each freed block of a megabyte or more to the operating system at once, within this context.

    glibc raises the size from which it does so to that of the blocks that are freed, up to 32 MB. Blocks that are freed
    between others that stay, such as whole weights between their parts, would then stay with the process.
    """
    if not _mallopt:
        yield
        return
    _mallopt(_M_MMAP_THRESHOLD, _MB)
    try:
        yield
    finally:  # the largest that glibc would have chosen; it does not choose any more
        _mallopt(_M_MMAP_THRESHOLD, 32 * _MB)
        _mallopt(_M_TRIM_THRESHOLD, 64 * _MB)


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
