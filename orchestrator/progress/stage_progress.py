"""The progress of one stage of a run: the state of every item of work, and counts that are kept up to date."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.progress import Progress

DONE_STATES = ("registered", "done")
WAITING_STATES = ("waiting", "retrying")
ENDED_STATES = (*DONE_STATES, "cached", "failed", "stopped")
LAST_FAILURES = 3


@dataclass
class ItemProgress:
    """The progress of one item: an expert, a task or a trial.

    Attributes:
        state: Its state, such as ``waiting``, ``training``, ``retrying``, ``registered`` or ``failed``.
        step: Steps done.
        steps: Steps in total, 0 if unknown.
        metrics: The latest value of every reported metric.
        started: Time of its start on ``clock``; None while it waits and after it has ended.
        expected_end: Expected time of its end on ``clock``; None if unknown.
        note: Details of its state, such as an error message.
        clock: Monotonic clock, in seconds.
    """

    state: str = "waiting"
    step: int = 0
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    started: float | None = None
    expected_end: float | None = None
    note: str = ""
    clock: Callable[[], float] = time.monotonic

    def update(self, progress: Progress) -> None:
        """Take over a worker's report; metrics that it does not contain keep their values."""
        self.state, self.step, self.steps = progress.state, progress.step, progress.steps or self.steps
        self.metrics |= progress.metrics
        self.expected_end = self.clock() + progress.left if progress.left is not None else None

    def seconds_left(self) -> float | None:
        """Return the seconds until the expected end, at least 0; None if unknown."""
        return max(0.0, self.expected_end - self.clock()) if self.expected_end is not None else None


class StageProgress:
    """The items of one stage by key, in the order in which they were added. Every change takes constant time.

    Args:
        steps: The keys of the items, with the number of steps of each.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, steps: dict[str, int] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.items = {key: ItemProgress(steps=count, clock=clock) for key, count in (steps or {}).items()}
        self.counts: Counter[str] = Counter(waiting=len(self.items))
        self.active: dict[str, None] = {}  # keys of running and retried items, in the order of their start
        self.failures: deque[tuple[str, str]] = deque(maxlen=LAST_FAILURES)
        self.retries = 0
        self.started = clock()
        self._finished, self._finished_seconds = 0, 0.0

    def update(self, key: str, progress: Progress) -> bool:
        """Take over a worker's report about an item, and return whether it changed the item's state."""
        item = self._item(key)
        before = item.state
        item.update(progress)
        if item.state != before:
            item.note = ""
            self._change_state(key, item, before)
        return item.state != before

    def set_state(self, key: str, state: str, note: str = "", metrics: dict[str, float] | None = None) -> None:
        """Set the state and note of an item, and add metrics."""
        item = self._item(key)
        before, item.state, item.note, item.expected_end = item.state, state, note, None
        item.metrics |= metrics or {}
        self.retries += state == "retrying"
        if state == "failed":
            self.failures.append((key, first_line(note)))
        self._change_state(key, item, before)

    def count(self, *states: str) -> int:
        """Return the number of items in any of these states."""
        return sum(self.counts[state] for state in states)

    @property
    def running(self) -> int:
        """The number of items that run now."""
        return len(self.items) - self.count(*WAITING_STATES, *ENDED_STATES)

    def seconds_left(self) -> float | None:
        """Estimate the seconds until all items have ended; None without any basis.

        A waiting item takes the mean time of the finished ones, and as many items run in parallel as now. A running
        item takes the time that it reports, or the mean time.
        """
        now = self.clock()
        # A copy, because the terminal is drawn by another thread than the one that handles events.
        active = [self.items[key] for key in list(self.active)]
        running = [item for item in active if item.state != "retrying"]
        mean = self._finished_seconds / self._finished if self._finished else _mean_expected_seconds(running)
        if mean is None or not running:
            return None
        left = [
            max(0.0, (item.expected_end if item.expected_end is not None else (item.started or now) + mean) - now)
            for item in running
        ]
        shared = (sum(left) + mean * self.count(*WAITING_STATES)) / len(left)
        return max(shared, *left)

    def summary(self) -> str:
        """Return the counts as text, as in ``3 of 4: 1 done, 1 cached, 1 waiting``; zero counts are left out."""
        counts = {
            "done": self.count(*DONE_STATES),
            "cached": self.counts["cached"],
            "running": self.running,
            "waiting": self.count(*WAITING_STATES),
            "failed": self.counts["failed"],
            "stopped": self.counts["stopped"],
            "retried": self.retries,
        }
        parts = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        ended = f"{self.count(*ENDED_STATES)} of {len(self.items)}"
        return f"{ended}: {parts}" if parts else ended

    def _item(self, key: str) -> ItemProgress:
        if key not in self.items:
            self.items[key] = ItemProgress(clock=self.clock)
            self.counts["waiting"] += 1
        return self.items[key]

    def _change_state(self, key: str, item: ItemProgress, before: str) -> None:
        self.counts[before] -= 1
        self.counts[item.state] += 1
        if item.state in ENDED_STATES or item.state == "waiting":
            self.active.pop(key, None)
        else:
            self.active[key] = None
        if item.state in DONE_STATES and item.started is not None:
            self._finished += 1
            self._finished_seconds += self.clock() - item.started
        if item.state in (*WAITING_STATES, *ENDED_STATES):
            item.started = None
        elif item.started is None:
            item.started = self.clock()


def first_line(text: str) -> str:
    """Return the first line of a text without control characters, which a terminal would interpret."""
    return "".join(filter(str.isprintable, (text.strip().splitlines() or [""])[0]))


def _mean_expected_seconds(items: list[ItemProgress]) -> float | None:
    seconds = [
        item.expected_end - item.started for item in items if item.expected_end is not None and item.started is not None
    ]
    return sum(seconds) / len(seconds) if seconds else None
