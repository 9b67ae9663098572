"""Access to raw rows: the value of a dotted column path, and the row filters of a task."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from ttmoe.errors import InputError
from workers.data.cells import ColumnType, spelling, text_of
from workers.data.columns import RowFilter
from workers.data.tables import joined_names

Row = dict[str, Any]


def column_value(row: Row, column: str, where: str, number: int | None = None) -> Any:
    """Return the value at a dotted path such as ``input.-1.content``.

    A column with exactly the name ``column`` takes precedence over a path.

    Args:
        row: The row.
        column: Column name or dotted path; list items are indexed from 0, or from -1 backwards.
        where: Config key of the column, or the place of the row, for the error.
        number: Row number, for the error; None if ``where`` has it.

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


def outer_column(column: str, names: Container[str]) -> str:
    """Return which of these columns holds the value at a dotted path; the column may be missing."""
    return column if column in names else column.split(".")[0]


def value_if_any(row: Row, column: str) -> Any:
    """Return what ``column_value`` does; None if the path does not exist."""
    if outer_column(column, row) not in row:  # the common case, in which no error has to be made
        return None
    try:
        return column_value(row, column, "", 0)
    except InputError:
        return None


def failed_filter(
    row: Row, filters: Sequence[RowFilter], types: Mapping[str, ColumnType], where: str, number: int
) -> int | None:
    """Return the index of the first filter that the row does not pass; None if it passes all.

    An empty cell passes no numeric bound. A row without the column is one with an empty cell.

    Args:
        row: The row.
        filters: The filters of the task.
        types: Type of each filter's column; texts if unknown.
        where: Dotted config key of the task, for errors.
        number: Row number, for errors.

    Raises:
        InputError: If a value has no text, or if one to compare with a bound is not a number.
    """
    for index, row_filter in enumerate(filters):
        key = f"{where}.where.{index}.column"
        text = text_of(value_if_any(row, row_filter.column), row_filter.column, key, number)
        kind = types.get(row_filter.column, "text")
        if row_filter.one_of is not None:
            passes = spelling(text, kind) in _spellings(row_filter.one_of, kind)
        elif row_filter.not_in is not None:
            passes = spelling(text, kind) not in _spellings(row_filter.not_in, kind)
        elif row_filter.matches is not None:
            passes = re.search(row_filter.matches, text) is not None
        else:
            passes = text != "" and is_within(as_number(text, key, number), row_filter.above, row_filter.below)
        if not passes:
            return index
    return None


def check_filter_columns(rows: Sequence[Row], filters: Sequence[RowFilter], where: str) -> None:
    """Raise InputError if no row has the column of a filter."""
    for index, each in enumerate(filters):
        if rows and all(value_if_any(row, each.column) is None for row in rows):
            column_value(rows[0], each.column, f"{where}.where.{index}.column", 1)


@cache
def _spellings(values: tuple[str, ...], kind: ColumnType) -> frozenset[str]:
    return frozenset(spelling(value, kind) for value in values)


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


def _no_column(value: Any, part: str, column: str, where: str, number: int | None) -> InputError:
    if isinstance(value, dict):
        names = [str(name) for name in value]
        near = get_close_matches(part, names, 3, 0.5)
        fix = (f"nearest: {', '.join(near)}; " if near else "") + f"existing columns: {', '.join(names[:20])}"
        if mark := joined_names(names):
            fix = f"its cells seem to be separated by {mark!r}: set the source's `delimiter`; {fix}"
    elif isinstance(value, list | tuple):
        fix = f"{part!r} is not an index of a list of {len(value)}: write an index from 0, or from -1 backwards"
        if not value:
            fix = f"the list of this row is empty: leave such rows out by a filter of the task, `where`, on {column}"
    else:
        fix = f"{part!r} cannot be looked up in {str(value)[:40]!r}, which is a plain value"
    subject = "the row" if number is None else f"row {number}"
    return InputError(f"{subject} has no column {column!r}", where=where, fix=fix)
