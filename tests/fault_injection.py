"""Faults of the system (a full disk, a broken network) in place of one call of this project.

Python's audit hooks see each file that is opened, renamed, listed or removed and each connection, in libraries too. A
call site is the innermost line of this project in the stack, and the line of another of its modules that called it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(f"{ROOT / name}/" for name in ("ttmoe", "workers", "orchestrator", "cluster"))
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "os.truncate",
          "os.link", "os.symlink", "shutil.rmtree", "shutil.copyfile", "shutil.move", "tempfile.mkstemp",
          "tempfile.mkdtemp", "socket.connect", "socket.bind", "socket.getaddrinfo", "sqlite3.connect"}  # fmt: skip
ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES)
CODES = {0, 1, 2, 3, 4}  # as the README says; 0 where the work does without the file
Site = tuple[str, ...]
"""A call site: the event of Python's audit hooks, ``file:line``, and that of the caller in another module."""


class Injector:
    """An audit hook, which cannot be removed: it does nothing unless a test asks it to.

    Attributes:
        failed: Whether the last fault that was asked for has been injected.
    """

    def __init__(self) -> None:
        self.failed = False
        self._sites: dict[Site, int] | None = None
        self._fails_at: Site | None = None
        self._number = errno.EIO

    @contextmanager
    def recorded(self) -> Iterator[dict[Site, int]]:
        """Yield what gets the sites that are reached within the context, and how often."""
        self._sites = sites = {}
        try:
            yield sites
        finally:
            self._sites = None

    @contextmanager
    def failing(self, site: Site, number: int) -> Iterator[None]:
        """Let a site fail with this ``errno`` the first time that it is reached within the context."""
        self._fails_at, self._number, self.failed = site, number, False
        try:
            yield
        finally:
            self._fails_at = None

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in EVENTS or (self._sites is None and self._fails_at is None):
            return
        if (site := _site(event, sys._getframe(1))) is None:
            return
        if self._sites is not None:
            self._sites[site] = self._sites.get(site, 0) + 1
        elif site == self._fails_at and not self.failed:
            self.failed = True
            raise _error(event, arguments, self._number)


@cache
def installed() -> Injector:
    """Return the hook of this process."""
    injector = Injector()
    sys.addaudithook(injector)
    return injector


def injected(number: int) -> int:
    """Return the ``errno`` of the fault at the site of this number: each is as frequent."""
    return ERRORS[number % len(ERRORS)]


def _site(event: str, frame: FrameType | None) -> Site | None:
    lines: list[str] = []
    files: list[str] = []
    while frame is not None and len(lines) < 2:
        name = frame.f_code.co_filename
        if "importlib" in name or name.endswith(("linecache.py", "traceback.py", "pytest/")):
            return None  # modules, and the printing of errors
        if name.startswith(PACKAGES) and name not in files:
            files.append(name)
            lines.append(f"{name.removeprefix(f'{ROOT}/')}:{frame.f_lineno}")
        frame = frame.f_back
    return (event, *lines) if lines else None


def _error(event: str, arguments: tuple[Any, ...], number: int) -> Exception:
    if event == "sqlite3.connect":
        return sqlite3.OperationalError("unable to open database file")
    path = arguments[0] if arguments and isinstance(arguments[0], str | bytes | Path) else None
    if number == errno.ENOSPC or path is None:  # as a write raises it, which names no file
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), os.fsdecode(path))
