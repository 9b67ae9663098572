"""Measure on which activities a process spends its time for each expert.

Code marks its activity with ``activity_timer``. It does not know who measures, or whether anybody does.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

ACTIVITIES = ("loading", "tokens", "trunk", "steps", "evaluation", "saving")


class Stopwatch:
    """Seconds of each expert by activity, measured while the stopwatch runs."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._blocks: list[tuple[str, tuple[str, ...]]] = []  # activity and experts of the blocks entered, inner last
        self._counted_until = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure the activities in this context."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def seconds(self, expert: str) -> dict[str, float]:
        """Return an expert's seconds by activity, without the blocks that have not ended."""
        return {name: self._seconds[expert][name] for name in ACTIVITIES}

    def add(self, expert: str, seconds: Mapping[str, float]) -> None:
        """Add seconds by activity, such as those of an earlier attempt."""
        self._seconds[expert].update(seconds)

    def enter(self, activity: str, experts: tuple[str, ...]) -> None:
        """Begin a block; without experts it is a part of the work for those of the surrounding block."""
        self._count()
        self._blocks.append((activity, experts or (self._blocks[-1][1] if self._blocks else ())))

    def leave(self) -> None:
        """End the innermost block."""
        self._count()
        self._blocks.pop()

    def _count(self) -> None:
        """Count the time since the last change of blocks for the innermost block."""
        now = time.monotonic()
        if self._blocks:
            activity, experts = self._blocks[-1]
            for expert in experts:
                self._seconds[expert][activity] += (now - self._counted_until) / len(experts)  # type: ignore[assignment]
        self._counted_until = now


_current: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


def current_stopwatch() -> Stopwatch:
    """Return the stopwatch that runs, or a new one that nobody reads."""
    return _current.get() or Stopwatch()


@contextmanager
def activity_timer(activity: str, *experts: str) -> Iterator[None]:
    """Measure the time in this context, if a stopwatch runs.

    Time in an inner ``activity_timer`` is counted there alone.

    Args:
        activity: One of ``ACTIVITIES``.
        experts: The experts for which the work is done, which share its time equally; by default those of the
            surrounding context.
    """
    stopwatch = current_stopwatch()
    stopwatch.enter(activity, experts)
    try:
        yield
    finally:
        stopwatch.leave()
