"""Lines and progress on standard error."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_INTERVAL = 10.0
"""Seconds between two progress lines where there is no terminal."""


def print_line(messages: Console, line: str) -> None:
    """Print one line without wrapping, markup or highlighting."""
    messages.print(line, soft_wrap=True, markup=False, highlight=False)


class ThroughputDisplay:
    """Context manager that shows the number of answered rows: a bar on a terminal, otherwise a line now and then.

    On success it prints the total and the speed.

    Args:
        messages: Console to print to.
        rows: Number of all rows.
    """

    def __init__(self, messages: Console, rows: int) -> None:
        self.messages, self.rows, self.done = messages, rows, 0
        self.start = self.last_line = time.monotonic()
        self.bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("rows, {task.fields[rate]} rows/s"), TimeRemainingColumn(),
            console=messages, transient=True, disable=not messages.is_terminal,
        )  # fmt: skip
        self.bar_task = self.bar.add_task("", total=rows, rate="0")

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
        """Mean number of rows per second since the start, as text."""
        return f"{self.done / max(time.monotonic() - self.start, 1e-9):,.0f}"

    def advance(self, rows: int) -> None:
        """Add ``rows`` to the number of answered rows."""
        self.done += rows
        self.bar.update(self.bar_task, completed=self.done, rate=self.rate)
        due = time.monotonic() - self.last_line >= LINE_INTERVAL
        if due and self.done < self.rows and not self.messages.is_terminal:
            self.last_line = time.monotonic()
            print_line(self.messages, f"{self.done:,} of {self.rows:,} rows ({self.rate} rows/s)")
