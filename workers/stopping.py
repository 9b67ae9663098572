"""The request to stop work after its present step: training saves a checkpoint and ends, so nothing is computed twice.

It comes from the driver, which stops a job, or as SIGTERM from a system that takes the machine away.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

_asks: list[Callable[[], bool]] = []
_signals: list[
    tuple[Callable[[int, FrameType | None], Any], int]
] = []  # deferred: the handler, and the signal's number


class StoppedError(Exception):
    """Work was stopped on request, after it saved what it had."""


@contextmanager
def stopped_by(ask: Callable[[], bool]) -> Iterator[None]:
    """Let a function tell whether the work within this context is to stop; it is called once in a step."""
    _asks.append(ask)
    try:
        yield
    finally:
        _asks.remove(ask)


@contextmanager
def deferred_sigterm() -> Iterator[None]:
    """Within this context, answer SIGTERM at the next call of ``raise_if_stopped``, not in the middle of a step."""
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: _signals.append((handler, number)))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        if _signals:
            _answer_signal()


def raise_if_stopped(save: Callable[[], Any], anywhere: Callable[[Sequence[bool]], list[bool]] = list) -> None:
    """Call ``save`` and end the work if it is to stop.

    Args:
        save: Saves what the work has; called before the end.
        anywhere: Returns for each flag whether it is set in any of the processes that do the work together.

    Raises:
        StoppedError: The driver asked for the end. After SIGTERM, its handler raises what it raises.
    """
    (stops,) = anywhere([bool(_signals) or any(ask() for ask in _asks)])
    if not stops:
        return
    save()
    if _signals:
        _answer_signal()
    raise StoppedError("stopped on request")


def _answer_signal() -> None:
    handler, number = _signals[0]
    _signals.clear()
    handler(number, None)
