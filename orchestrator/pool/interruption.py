"""Ctrl-C that cannot get lost."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class CtrlC:
    """Remembers that Ctrl-C was pressed within this context.

    Python raises KeyboardInterrupt wherever the main thread happens to be. Within a destructor, or a callback of a
    library that catches everything, it is swallowed and the command goes on. A loop that calls ``check`` ends anyway.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._before: Any = None

    def __enter__(self) -> CtrlC:
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            try:
                signal.signal(signal.SIGINT, self._handle)
                self._before = before
            except ValueError:  # only the main thread may set handlers, and only it gets KeyboardInterrupt
                pass
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.pressed:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        raise KeyboardInterrupt
