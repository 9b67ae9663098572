"""Access to raw rows: the value of a dotted column path, and the row filters of a task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from ttmoe.errors import InputError
from workers.data.columns import RowFilter
from workers.data.validation import cell_text

Row = dict[str, Any]


def column_value(row: Row, column: str, where: str, number: int) -> Any:
    """Return the value at a dotted path such as ``input.-1.content``.

    A column with exactly the name ``column`` takes precedence over a path.

    Args:
        row: The row.
        column: Column name or dotted path; list items are indexed from 0, or from -1 backwards.
        where: Config key of the column, for the error.
        number: Row number, for the error.

    Raises:
        InputError: If the path does not exist; the fix names similar columns.
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and _is_index(part, len(value)):
            value = value[int(part)]
        else:
            raise _no_column(value, part, column, where, number)
    return value


def passes_filters(row: Row, filters: Sequence[RowFilter], where: str, number: int) -> bool:
    """Return whether the row passes all filters. An empty cell passes no numeric bound.

    Args:
        row: The row.
        filters: The filters of the task.
        where: Dotted config key of the task, for errors.
        number: Row number, for errors.

    Raises:
        InputError: If a column does not exist, or if a value to compare with a bound is not a number.
    """
    for index, row_filter in enumerate(filters):
        key = f"{where}.where.{index}.column"
        text = cell_text(column_value(row, row_filter.column, key, number))
        if row_filter.one_of is not None:
            passes = text in row_filter.one_of
        elif row_filter.not_in is not None:
            passes = text not in row_filter.not_in
        elif row_filter.matches is not None:
            passes = re.search(row_filter.matches, text) is not None
        else:
            passes = text != "" and is_within(as_number(text, key, number), row_filter.above, row_filter.below)
        if not passes:
            return False
    return True


def is_within(value: float, low: float | None, high: float | None) -> bool:
    """Return whether ``low < value < high``; a bound that is None is ignored."""
    return (low is None or value > low) and (high is None or value < high)


def as_number(text: str, where: str, number: int) -> float:
    """Return the text of a cell as a number.

    Raises:
        InputError: If it is not a number; the error contains the config key ``where`` and the row number ``number``.
    """
    try:
        return float(text)
    except ValueError as error:
        fix = "leave such rows out with `where`, or name another column"
        raise InputError(f"row {number} contains {text!r}, which is not a number", where=where, fix=fix) from error


def _is_index(part: str, length: int) -> bool:
    return re.fullmatch(r"-?\d+", part) is not None and -length <= int(part) < length


def _no_column(value: Any, part: str, column: str, where: str, number: int) -> InputError:
    if isinstance(value, dict):
        names = [str(name) for name in value]
        near = get_close_matches(part, names, 3, 0.5)
        fix = (f"nearest: {', '.join(near)}; " if near else "") + f"existing columns: {', '.join(names[:20])}"
    elif isinstance(value, list | tuple):
        fix = f"{part!r} is not an index of a list of {len(value)}: write an index from 0, or from -1 backwards"
    else:
        fix = f"{part!r} cannot be looked up in {str(value)[:40]!r}, which is a plain value"
    return InputError(f"row {number} has no column {column!r}", where=where, fix=fix)
