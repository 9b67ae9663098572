"""The live view of a run: the current stage as one screen on a terminal, as plain lines elsewhere.

It is made for a thousand items as well as for four: a long list is reduced to the items that run.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.plan.quantities import format_duration
from orchestrator.progress.item_table import MAX_ROWS, append_table, format_item
from orchestrator.progress.stage_progress import DONE_STATES, StageProgress, first_line
from workers.progress import Progress

SUMMARY_INTERVAL = 10.0  # seconds between two plain lines with the counts of a long list
REPORTED_STATES = ("registered", "failed", "retrying")  # changes that get a plain line in a long list
LABELS = ("", "step ", "loss ", "", "")  # of the cells in a plain line
RESERVED_LINES = 10  # of a terminal: title, headings, counts, failures and the shell's prompt


class LiveView:
    """Shows the stages of a run one after another; a context manager.

    Args:
        console: Console to print to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.title, self.noun = "", ""
        self.stage = StageProgress()
        self.last_summary = 0.0
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

    def start_stage(self, title: str, noun: str, steps: dict[str, int]) -> None:
        """End the current stage and start another.

        Args:
            title: Title of the stage.
            noun: What an item is, such as ``expert``.
            steps: The keys of the items, with the number of steps of each.
        """
        self.end_stage()
        self.title, self.noun, self.stage, self.last_summary = title, noun, StageProgress(steps), time.monotonic()
        if not self.console.is_terminal:
            items = ", ".join(steps) if len(steps) <= MAX_ROWS else str(len(steps))
            self._print_plain(f"{title}: {items}" if items else title)  # a search adds its trials later

    def end_stage(self) -> None:
        """End the stage: its last screen stays on a terminal; elsewhere a long list ends with its counts."""
        if self.stage.items and self.console.is_terminal:
            screen = render_stage(
                self.title, self.noun, self.stage, self.console.width, self.console.height, final=True
            )
            self.stage = StageProgress()
            self.console.print(screen)
            self.console.print()
        elif self._is_long:
            self._print_summary(final=True)
        self.stage = StageProgress()

    def update(self, key: str, progress: Progress) -> None:
        """Show a worker's report about an item."""
        changed = self.stage.update(key, progress)
        if self.console.is_terminal:
            return
        evaluated = any(name.startswith("validation.") for name in progress.metrics)
        if (changed or evaluated) and not self._is_long:
            self._print_item(key)
        self._print_summary_if_due()

    def set_state(self, key: str, state: str, note: str = "", metrics: dict[str, float] | None = None) -> None:
        """Set the state and note of an item, and add metrics."""
        self.stage.set_state(key, state, note, metrics)
        if self.console.is_terminal:
            return
        if not self._is_long or state in REPORTED_STATES:
            self._print_item(key)
        self._print_summary_if_due()

    def print(self, text: str) -> None:
        """Print one line above the screen."""
        self._print_plain(text)

    @property
    def _is_long(self) -> bool:
        return len(self.stage.items) > MAX_ROWS

    def _screen(self) -> Text | str:
        if not self.stage.items:
            return ""
        return render_stage(self.title, self.noun, self.stage, self.console.width, self.console.height)

    def _print_item(self, key: str) -> None:
        item = self.stage.items[key]
        cells = [label + cell for label, cell in zip(LABELS, format_item(item), strict=True) if cell]
        self._print_plain(f"  {key}: {', '.join(cells)}" + (" left" if item.expected_end is not None else ""))

    def _print_summary_if_due(self) -> None:
        if self._is_long and time.monotonic() - self.last_summary >= SUMMARY_INTERVAL:
            self._print_summary()

    def _print_summary(self, *, final: bool = False) -> None:
        self.last_summary = time.monotonic()
        self._print_plain(f"{self.stage.summary()}; {_format_times(self.stage, final=final)}")

    def _print_plain(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)


def render_stage(title: str, noun: str, stage: StageProgress, width: int, height: int, *, final: bool = False) -> Text:
    """Return the screen of a stage.

    Args:
        title: Title of the stage.
        noun: What an item is, such as ``expert``.
        stage: The stage. Of more than ``MAX_ROWS`` items, only those that run are listed.
        width: Width of the terminal, in characters.
        height: Height of the terminal, in lines.
        final: Whether the stage has ended: the screen then has the whole messages of its failures.
    """
    is_long = len(stage.items) > MAX_ROWS
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{title}  ·  {_format_times(stage, final=final)}\n", style="bold")
    text.append(f"{stage.summary()}\n")
    keys = list(stage.items) if not is_long else [] if final else list(stage.active)
    listed = keys[: max(3, height - RESERVED_LINES)] if is_long else keys
    append_table(text, noun, [(key, stage.items[key]) for key in listed], width)
    if is_long and not final:
        _append_unlisted(text, stage, len(keys) - len(listed))
    _append_failures(text, stage, whole=final and not is_long)
    text.rstrip()
    return text


def _format_times(stage: StageProgress, *, final: bool) -> str:
    left = None if final else stage.seconds_left()
    elapsed = format_duration(stage.clock() - stage.started)
    return f"{elapsed}, about {format_duration(left)} left" if left is not None else elapsed


def _append_unlisted(text: Text, stage: StageProgress, running: int) -> None:
    counts = {
        "more running": running,
        "waiting": stage.counts["waiting"],
        "done": stage.count(*DONE_STATES, "cached"),
    }
    if any(counts.values()):
        parts = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        text.append(f"… and {parts}\n", style="dim")


def _append_failures(text: Text, stage: StageProgress, *, whole: bool) -> None:
    count, failures = stage.counts["failed"], list(stage.failures)
    if not count:
        return
    if whole:
        failures = [
            (key, "\n    ".join(map(first_line, item.note.splitlines())))
            for key, item in list(stage.items.items())
            if item.state == "failed"
        ]
        text.no_wrap, text.overflow = False, "fold"
    last = f", the last {len(failures)}:" if count > len(failures) else ""
    text.append(f"failed: {count}{last}\n", style="bold red")
    for key, message in failures:
        text.append(f"  {key}: {message}\n")
