"""A table of items with state, step, loss, accuracy and time left, for the live view and ``ttmoe status``.

Rows are formatted as plain text: rich's tables take five times as long, and truncate the numbers first.
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
    """Return the cells of an item under ``HEADINGS``; a cell is empty if its value is unknown."""
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
    """Append one line per item to ``text``, below a line of headings; append nothing without items.

    Args:
        text: The text to extend.
        noun: Heading of the keys, such as ``expert``.
        items: Keys and items.
        width: Width in characters. Long keys and states are truncated to fit, numbers are not.
    """
    if not items:
        return
    lines = [(noun, *HEADINGS), *((key, *format_item(item)) for key, item in items)]
    styles = ["dim", *(STYLES.get(item.state, "") for _, item in items)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(HEADINGS) + 1)]
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
