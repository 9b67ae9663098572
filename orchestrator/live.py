"""The live view: a table of the work in progress on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from workers.progress import Progress

ENDED = ("registered", "cached", "done", "failed")
STYLES = {"registered": "green", "done": "green", "cached": "dim", "failed": "bold red", "waiting": "dim"}


@dataclass
class Row:
    """What is shown of one piece of work."""

    state: str = "waiting"
    step: int = 0
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    ends: float | None = None  # on the monotonic clock
    note: str = ""

    def take(self, progress: Progress) -> None:
        """Show newer progress; metrics that it does not name stay."""
        self.state, self.step, self.steps = progress.state, progress.step, progress.steps
        self.metrics |= progress.metrics
        self.ends = time.monotonic() + progress.left if progress.left is not None else None


class LiveView:
    """Shows stages of work one after another; a context manager. Rows are kept by key in the order they came."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.title, self.noun = "", ""
        self.rows: dict[str, Row] = {}
        self.began = time.monotonic()
        self.live = Live(get_renderable=self._table, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_stage()
        self.live.stop()

    def stage(self, title: str, noun: str, keys: dict[str, int]) -> None:
        """Begin a stage: ``keys`` are its pieces of work, each with its number of steps."""
        self.end_stage()
        self.title, self.noun, self.began = title, noun, time.monotonic()
        self.rows = {key: Row(steps=steps) for key, steps in keys.items()}
        if not self.console.is_terminal:
            self.console.print(f"{title}: {', '.join(keys)}", soft_wrap=True)

    def end_stage(self) -> None:
        """Leave the finished stage's table behind on a terminal."""
        if self.rows and self.console.is_terminal:
            self.console.print(self._table())
        self.rows = {}

    def progress(self, key: str, progress: Progress) -> None:
        """Show a report of a piece of work."""
        row = self.rows.setdefault(key, Row())
        measured = any(name.startswith("validation.") for name in progress.metrics)
        changed = progress.state != row.state
        row.take(progress)
        if not self.console.is_terminal and (changed or measured):
            self._line(key)

    def state(self, key: str, state: str, note: str = "", metrics: dict[str, float] | None = None) -> None:
        """Set a piece of work's state outright."""
        row = self.rows.setdefault(key, Row())
        row.state, row.note, row.ends = state, note, None
        row.metrics |= metrics or {}
        if not self.console.is_terminal:
            self._line(key)

    def say(self, text: str) -> None:
        """One line that stays above the table."""
        self.console.print(text, soft_wrap=True)

    def _line(self, key: str) -> None:
        cells = [cell for cell in self._cells(key, self.rows[key])[1:] if cell]
        self.console.print(f"  {key}: {', '.join(cells)}", soft_wrap=True, markup=False, highlight=False)

    def _cells(self, key: str, row: Row) -> list[str]:
        accuracy = row.metrics.get("test.accuracy", row.metrics.get("validation.accuracy"))
        which = "test" if "test.accuracy" in row.metrics else "val"
        loss = row.metrics.get("train.loss")
        return [
            key,
            row.state + (f": {row.note}" if row.note else ""),
            f"step {row.step}/{row.steps}" if row.step else "",
            f"loss {loss:.3f}" if loss is not None else "",
            f"{which} {accuracy:.3f}" if accuracy is not None else "",
            f"{max(0, row.ends - time.monotonic()):.0f} s left" if row.ends is not None else "",
        ]

    def _table(self) -> Table | str:
        if not self.rows:
            return ""
        ended = sum(row.state in ENDED for row in self.rows.values())
        passed = time.monotonic() - self.began
        table = Table(
            box=SIMPLE_HEAD,
            title=f"{self.title}  ·  {ended} of {len(self.rows)} done  ·  {passed:.0f} s",
            title_justify="left",
        )
        for head in (self.noun, "state", "step", "loss", "accuracy", "left"):
            table.add_column(
                head, justify="left" if head in (self.noun, "state") else "right", no_wrap=head == self.noun
            )
        for key, row in self.rows.items():
            table.add_row(*map(escape, self._cells(key, row)), style=STYLES.get(row.state))
        return table
