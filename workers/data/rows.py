"""Looking into a row: the value of a dotted column, and whether the row passes a task's filters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from ttmoe.errors import InputError
from workers.data.columns import RowFilter, cell_text

Row = dict[str, Any]


def column_value(row: Row, column: str, where: str, number: int) -> Any:
    """The value at a dotted path, such as ``input.-1.content``; a column of that whole name comes first.

    ``where`` is the config's key for it and ``number`` the row's, for the InputError where there is none.
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
    """Does it pass all filters? ``where`` is the task's dotted key. A missing number passes no bound."""
    for index, asked in enumerate(filters):
        place = f"{where}.where.{index}.column"
        text = cell_text(column_value(row, asked.column, place, number))
        if asked.one_of is not None:
            fits = text in asked.one_of
        elif asked.not_in is not None:
            fits = text not in asked.not_in
        elif asked.matches is not None:
            fits = re.search(asked.matches, text) is not None
        else:
            fits = text != "" and is_within(as_number(text, place, number), asked.above, asked.below)
        if not fits:
            return False
    return True


def is_within(value: float, low: float | None, high: float | None) -> bool:
    """Is ``value`` strictly between the bounds? None bounds nothing."""
    return (low is None or value > low) and (high is None or value < high)


def as_number(text: str, where: str, number: int) -> float:
    """The number that a cell says, or an InputError that names the row."""
    try:
        return float(text)
    except ValueError as error:
        fix = "Leave such rows out by `where`, or name another column."
        raise InputError(f"row {number} has {text!r}, which is no number", where=where, fix=fix) from error


def _is_index(part: str, length: int) -> bool:
    return re.fullmatch(r"-?\d+", part) is not None and -length <= int(part) < length


def _no_column(value: Any, part: str, column: str, where: str, number: int) -> InputError:
    if isinstance(value, dict):
        names = [str(name) for name in value]
        near = get_close_matches(part, names, 3, 0.5)
        fix = (f"Nearest: {', '.join(near)}. " if near else "") + f"There are: {', '.join(names[:20])}."
    elif isinstance(value, list | tuple):
        fix = f"{part!r} is looked up in a list of {len(value)}: write an index from 0, or from -1 backwards."
    else:
        fix = f"{part!r} is looked up in {str(value)[:40]!r}, which holds nothing further."
    return InputError(f"row {number} has no column {column!r}", where=where, fix=fix)
