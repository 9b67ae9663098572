"""SIGTERM and a closed terminal, which end a command as Ctrl-C does, and are told apart by its exit code."""

from __future__ import annotations

import signal
from types import FrameType

_terminated_by = 0


def end_on_signals() -> None:
    """Let SIGTERM and a closed terminal raise KeyboardInterrupt in this process, which runs one command."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    global _terminated_by
    _terminated_by = number
    raise KeyboardInterrupt


def terminated_by() -> int:
    """Return the signal that a KeyboardInterrupt is due to; 0 for Ctrl-C. Ray raises a new one, without it."""
    return _terminated_by


def interruption_code() -> int:
    """Return the exit code after a KeyboardInterrupt: 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP."""
    return 128 + (_terminated_by or signal.SIGINT)
