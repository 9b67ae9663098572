"""A table of items with state, step, loss, accuracy and time left, for the live view and ``ttmoe status``.

An item is an expert, a task, a trial or the router. Rows are formatted as plain text: a table of the library ``rich``
takes five times as long to render, and if space is short it truncates numbers before names.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from orchestrator.plan.quantities import format_duration
from orchestrator.progress.stage_progress import ItemProgress, first_line

HEADINGS = ("state", "step", "loss", "accuracy", "left")
MAX_ROWS = 20  # a longer list is shortened
MAX_KEY_WIDTH = 36
MIN_STATE_WIDTH = 12
GAP = "   "
STYLES = {
    "registered": "green", "done": "green", "cached": "dim", "failed": "bold red", "waiting": "dim",
    "retrying": "yellow", "stopped": "yellow",
}  # fmt: skip


def format_item(item: ItemProgress) -> list[str]:
    """Return five texts: state with note, ``step/steps``, loss, accuracy with its split, and time left.

    A text is empty if its value is unknown.
    """
    accuracy = item.metrics.get("test.accuracy", item.metrics.get("validation.accuracy"))
    split = "test" if "test.accuracy" in item.metrics else "val"
    loss, left, note = item.metrics.get("train.loss"), item.seconds_left(), first_line(item.note)
    return [
        item.state + (f": {note}" if note else ""),
        f"{item.step}/{item.steps}" if item.step else "",
        f"{loss:.3f}" if loss is not None else "",
        f"{split} {accuracy:.3f}" if accuracy is not None else "",
        format_duration(left) if left is not None else "",
    ]


def append_table(text: Text, noun: str, items: Sequence[tuple[str, ItemProgress]], width: int) -> None:
    """Append a line of headings and one line per item to ``text``. If ``items`` is empty, ``text`` stays unchanged.

    Args:
        text: The text to extend.
        noun: Heading of the column of keys, such as ``expert``.
        items: Keys and items.
        width: Width of a line in characters. Long keys and states are truncated to fit, numbers are not.
    """
    if not items:
        return
    lines = [(noun, *HEADINGS), *((key, *format_item(item)) for key, item in items)]
    styles = ["dim", *(STYLES.get(item.state, "") for _, item in items)]
    if not any(line[-1] for line in lines[1:]):  # as in `ttmoe status`, which does not know the time left
        lines = [line[:-1] for line in lines]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(lines[0]))]
    widths[0] = min(widths[0], MAX_KEY_WIDTH)
    others = widths[0] + sum(widths[2:]) + len(GAP) * len(HEADINGS) + 2
    widths[1] = max(MIN_STATE_WIDTH, min(widths[1], width - others))
    text.append("\n")
    for line, style in zip(lines, styles, strict=True):
        left = [_truncate(cell, size) for cell, size in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(size) for cell, size in zip(line[2:], widths[2:], strict=True)]
        text.append(f"  {GAP.join([*left, *right])}\n", style=style)
    text.append("\n")


def _truncate(cell: str, size: int) -> str:
    return set_cell_size(cell, size) if cell_len(cell) <= size else set_cell_size(cell, size - 1) + "…"
