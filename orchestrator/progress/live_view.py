"""The live view: the work in progress as one screen on a terminal, plain lines anywhere else.

It stays readable from four to a thousand pieces of work: few are all shown; of many, those that are being worked on.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.progress.live_screen import MAX_ROWS, format_cells, format_times, render_stage
from orchestrator.progress.stage_progress import StageProgress
from workers.progress import Progress

TOTALS_INTERVAL = 10.0  # seconds between two lines of totals, where lines stay
REPORTED_STATES = ("registered", "failed", "retrying")  # of many pieces of work
LABELS = ("", "step ", "loss ", "", "")  # what a table says in its heads


class LiveView:
    """Shows stages of work one after another; a context manager. Rows are kept by key in the order they came."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.title, self.noun = "", ""
        self.tally = StageProgress()
        self.said = 0.0
        self.live = Live(get_renderable=self._screen, console=console, refresh_per_second=4, transient=True)

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
        self.title, self.noun, self.tally, self.said = title, noun, StageProgress(keys), time.monotonic()
        if not self.console.is_terminal:
            self._plain(f"{title}: {', '.join(keys) if len(keys) <= MAX_ROWS else len(keys)}")

    def end_stage(self) -> None:
        """Leave the finished stage behind: its last screen on a terminal, its totals where there were many lines."""
        if self.tally.rows and self.console.is_terminal:
            last = render_stage(self.title, self.noun, self.tally, self.console.width, self.console.height, final=True)
            self.tally = StageProgress()
            self.console.print(last)
            self.console.print()
        elif self._many:
            self._totals(final=True)
        self.tally = StageProgress()

    def progress(self, key: str, progress: Progress) -> None:
        """Show a report of a piece of work."""
        changed = self.tally.progress(key, progress)
        if self.console.is_terminal:
            return
        measured = any(name.startswith("validation.") for name in progress.metrics)
        if (changed or measured) and not self._many:
            self._line(key)
        self._totals_if_due()

    def state(self, key: str, state: str, note: str = "", metrics: dict[str, float] | None = None) -> None:
        """Set a piece of work's state outright."""
        self.tally.state(key, state, note, metrics or {})
        if self.console.is_terminal:
            return
        if not self._many or state in REPORTED_STATES:
            self._line(key)
        self._totals_if_due()

    def say(self, text: str) -> None:
        """One line that stays above the table."""
        self.console.print(text, soft_wrap=True)

    @property
    def _many(self) -> bool:
        return len(self.tally.rows) > MAX_ROWS

    def _screen(self) -> Text | str:
        if not self.tally.rows:
            return ""
        return render_stage(self.title, self.noun, self.tally, self.console.width, self.console.height)

    def _line(self, key: str) -> None:
        row = self.tally.rows[key]
        said = [label + cell for label, cell in zip(LABELS, format_cells(row), strict=True) if cell]
        self._plain(f"  {key}: {', '.join(said)}" + (" left" if row.ends is not None else ""))

    def _totals_if_due(self) -> None:
        if self._many and time.monotonic() - self.said >= TOTALS_INTERVAL:
            self._totals()

    def _totals(self, *, final: bool = False) -> None:
        self.said = time.monotonic()
        self._plain(f"{self.tally.totals()}; {format_times(self.tally, final=final)}")

    def _plain(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)
