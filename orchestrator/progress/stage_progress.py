"""The tally of a stage: every piece of work with its state, counted as it changes so that a look costs nothing."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.progress import Progress

DONE = ("registered", "done")
WAITING = ("waiting", "retrying")
ENDED = (*DONE, "cached", "failed", "stopped")
LAST_FAILURES = 3


@dataclass
class ItemProgress:
    """What is shown of one piece of work. Times are on the monotonic clock."""

    state: str = "waiting"
    step: int = 0
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    began: float | None = None
    ends: float | None = None
    note: str = ""

    clock: Callable[[], float] = time.monotonic

    def take(self, progress: Progress) -> None:
        """Show newer progress; metrics that it does not name stay."""
        self.state, self.step, self.steps = progress.state, progress.step, progress.steps or self.steps
        self.metrics |= progress.metrics
        self.ends = self.clock() + progress.left if progress.left is not None else None

    def left(self) -> float | None:
        """Seconds that it says it needs."""
        return max(0.0, self.ends - self.clock()) if self.ends is not None else None


class StageProgress:
    """The rows of one stage by key, in the order they came, and their counts. Every change is O(1)."""

    def __init__(self, keys: dict[str, int] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.rows = {key: ItemProgress(steps=steps, clock=clock) for key, steps in (keys or {}).items()}
        self.counts: Counter[str] = Counter(waiting=len(self.rows))
        self.active: dict[str, None] = {}  # what runs or is tried again, in the order it began
        self.failures: deque[tuple[str, str]] = deque(maxlen=LAST_FAILURES)
        self.retries = 0
        self.began = clock()
        self._finished, self._seconds = 0, 0.0

    def progress(self, key: str, progress: Progress) -> bool:
        """Take a report; whether it changed the state."""
        row, before = self._row(key), self._row(key).state
        row.take(progress)
        if row.state != before:
            row.note = ""
            self._moved(key, row, before)
        return row.state != before

    def state(self, key: str, state: str, note: str, metrics: dict[str, float]) -> None:
        """Set a piece of work's state outright."""
        row = self._row(key)
        before, row.state, row.note, row.ends = row.state, state, note, None
        row.metrics |= metrics
        self.retries += state == "retrying"
        if state == "failed":
            self.failures.append((key, first_line(note)))
        self._moved(key, row, before)

    def count(self, *states: str) -> int:
        """How many are in any of these states."""
        return sum(self.counts[state] for state in states)

    @property
    def running(self) -> int:
        """How many are being worked on now."""
        return len(self.rows) - self.count(*WAITING, *ENDED)

    def left(self) -> float | None:
        """Seconds until all have ended, or None where nothing tells.

        What waits takes as long as what has finished took on average, as many at a time as run now; what runs says
        itself how long it needs, or takes the average too.
        """
        now = self.clock()
        # A copy: the screen is drawn from another thread than the one that hears the news.
        running = [self.rows[key] for key in list(self.active)]
        running = [row for row in running if row.state != "retrying"]
        each = self._seconds / self._finished if self._finished else _expected(running, now)
        if each is None or not running:
            return None
        rests = [
            max(0.0, row.ends - now if row.ends is not None else (row.began or now) + each - now) for row in running
        ]
        shared = (sum(rests) + each * self.count(*WAITING)) / len(rests)
        return max(shared, *rests)

    def totals(self) -> str:
        """The counts in words, the empty ones left out."""
        parts = {
            "done": self.count(*DONE),
            "cached": self.counts["cached"],
            "running": self.running,
            "waiting": self.count(*WAITING),
            "failed": self.counts["failed"],
            "stopped": self.counts["stopped"],
            "retried": self.retries,
        }
        ended = f"{self.count(*ENDED)} of {len(self.rows)}"
        return ", ".join([ended, *(f"{count} {word}" for word, count in parts.items() if count)]).replace(",", ":", 1)

    def _row(self, key: str) -> ItemProgress:
        if key not in self.rows:
            self.rows[key] = ItemProgress(clock=self.clock)
            self.counts["waiting"] += 1
        return self.rows[key]

    def _moved(self, key: str, row: ItemProgress, before: str) -> None:
        self.counts[before] -= 1
        self.counts[row.state] += 1
        if row.state in ENDED or row.state == "waiting":
            self.active.pop(key, None)
        else:
            self.active[key] = None
        if row.state in DONE and row.began is not None:
            self._finished, self._seconds = self._finished + 1, self._seconds + self.clock() - row.began
        if row.state in (*WAITING, *ENDED):
            row.began = None
        elif row.began is None:
            row.began = self.clock()


def _expected(running: list[ItemProgress], now: float) -> float | None:
    """How long a piece takes, from what the running ones report of themselves."""
    whole = [row.ends - row.began for row in running if row.ends is not None and row.began is not None]
    return sum(whole) / len(whole) if whole else None


def first_line(text: str) -> str:
    """The first line of a message that may have many, without what a terminal would obey."""
    return "".join(filter(str.isprintable, (text.strip().splitlines() or [""])[0]))


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: ``42 s``, ``7 min``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
