"""How far a file has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator.predict.routed_model import print_line

BETWEEN_LINES = 10.0  # seconds


class ThroughputDisplay:
    """Counts rows while it is open, and tells their number and speed at the end."""

    def __init__(self, messages: Console, rows: int) -> None:
        self.messages, self.rows, self.done = messages, rows, 0
        self.start = self.told = time.monotonic()
        self.bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("rows, {task.fields[rate]} rows/s"), TimeRemainingColumn(),
            console=messages, transient=True, disable=not messages.is_terminal,
        )  # fmt: skip
        self.shown = self.bar.add_task("", total=rows, rate="0")

    def __enter__(self) -> ThroughputDisplay:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.bar.stop()
        if error is None:
            seconds = time.monotonic() - self.start
            print_line(self.messages, f"{self.done:,} rows in {seconds:.1f} s ({self.rate} rows/s)")

    @property
    def rate(self) -> str:
        """Rows in a second, so far."""
        return f"{self.done / max(time.monotonic() - self.start, 1e-9):,.0f}"

    def advance(self, rows: int) -> None:
        """So many more were answered."""
        self.done += rows
        self.bar.update(self.shown, completed=self.done, rate=self.rate)
        late = time.monotonic() - self.told >= BETWEEN_LINES
        if late and self.done < self.rows and not self.messages.is_terminal:
            self.told = time.monotonic()
            print_line(self.messages, f"{self.done:,} of {self.rows:,} rows ({self.rate} rows/s)")
