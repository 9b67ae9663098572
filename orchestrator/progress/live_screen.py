"""What the live view shows on a terminal: one screen of a stage, drawn anew four times a second.

Rows are set as plain text here and not as rich tables, which take five times as long and squeeze the numbers first.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from orchestrator.progress.stage_progress import DONE, ItemProgress, StageProgress, first_line, format_duration

MAX_ROWS = 20  # so many rows are all shown; of more, those that are being worked on
FRAME = 10  # lines of a screen that hold no row: title, heads, what is left out, failures, the shell's own
LONGEST_KEY = 36
NARROWEST_STATE = 12
HEADS = ("state", "step", "loss", "accuracy", "left")
STYLES = {
    "registered": "green", "done": "green", "cached": "dim", "failed": "bold red", "waiting": "dim",
    "retrying": "yellow", "stopped": "yellow",
}  # fmt: skip


def render_stage(title: str, noun: str, tally: StageProgress, width: int, height: int, *, final: bool = False) -> Text:
    """The screen of a stage; ``final`` is the one that stays when it has ended, with its failures in full."""
    many = len(tally.rows) > MAX_ROWS
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{title}  ·  {format_times(tally, final=final)}\n", style="bold")
    text.append(f"{tally.totals()}\n")
    keys = [key for key in list(tally.active) if not final] if many else list(tally.rows)
    shown = keys[: max(3, height - FRAME)] if many else keys
    _rows(text, noun, [(key, tally.rows[key]) for key in shown], width)
    if many and not final:
        _rest(text, tally, len(keys) - len(shown))
    _failures(text, tally, whole=final and not many)
    text.rstrip()
    return text


def format_cells(row: ItemProgress) -> list[str]:
    """State, step, loss, accuracy and time left as text; empty where there is nothing to say."""
    accuracy = row.metrics.get("test.accuracy", row.metrics.get("validation.accuracy"))
    which = "test" if "test.accuracy" in row.metrics else "val"
    loss, left = row.metrics.get("train.loss"), row.left()
    note = first_line(row.note)
    return [
        row.state + (f": {note}" if note else ""),
        f"{row.step}/{row.steps}" if row.step else "",
        f"{loss:.3f}" if loss is not None else "",
        f"{which} {accuracy:.3f}" if accuracy is not None else "",
        format_duration(left) if left is not None else "",
    ]


def format_times(tally: StageProgress, *, final: bool = False) -> str:
    """How long it has gone on, and about how long it will."""
    left = None if final else tally.left()
    return format_duration(tally.clock() - tally.began) + (
        f", about {format_duration(left)} left" if left is not None else ""
    )


def _rows(text: Text, noun: str, rows: Sequence[tuple[str, ItemProgress]], width: int) -> None:
    """One line each: key and state on the left, figures on the right; what is too long loses its end."""
    if not rows:
        return
    lines = [(noun, *HEADS), *((key, *format_cells(row)) for key, row in rows)]
    styles = ["dim", *(STYLES.get(row.state, "") for _, row in rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(HEADS) + 1)]
    widths[0] = min(widths[0], LONGEST_KEY)
    widths[1] = max(NARROWEST_STATE, min(widths[1], width - 2 - widths[0] - sum(each + 3 for each in widths[2:]) - 3))
    text.append("\n")
    for line, style in zip(lines, styles, strict=True):
        left = "   ".join(_clipped(cell, size) for cell, size in zip(line[:2], widths[:2], strict=True))
        right = "   ".join(cell.rjust(size) for cell, size in zip(line[2:], widths[2:], strict=True))
        text.append(f"  {left}   {right}\n", style=style)
    text.append("\n")


def _clipped(cell: str, size: int) -> str:
    return set_cell_size(cell, size) if cell_len(cell) <= size else set_cell_size(cell, size - 1) + "…"


def _rest(text: Text, tally: StageProgress, hidden: int) -> None:
    parts = {
        "more under way": hidden,
        "waiting": tally.counts["waiting"],
        "done": tally.count(*DONE, "cached"),
    }
    if any(parts.values()):
        text.append(f"… and {', '.join(f'{count} {word}' for word, count in parts.items() if count)}\n", style="dim")


def _failures(text: Text, tally: StageProgress, *, whole: bool) -> None:
    failed, last = tally.counts["failed"], list(tally.failures)
    if not failed:
        return
    if whole:
        last = [
            (key, "\n    ".join(map(first_line, row.note.splitlines())))
            for key, row in list(tally.rows.items())
            if row.state == "failed"
        ]
        text.no_wrap, text.overflow = False, "fold"
    text.append(f"failed: {failed}" + (f", the last {len(last)}:\n" if failed > len(last) else "\n"), style="bold red")
    for key, note in last:
        text.append(f"  {key}: {note}\n")
