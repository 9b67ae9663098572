"""Cells of data files: their text, and when two spellings are one value. ``LabelColumn`` has a table of the latter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import date, time
from decimal import Decimal
from typing import Any, Literal

from ttmoe.errors import InputError

ColumnType = Literal["boolean", "number", "text"]

_BOOLEANS = ("true", "false")
# A number in a file without types. 01 is a text: an identifier, whose zero counts.
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)


class NotTextError(ValueError):
    """A value that is no text, number, boolean or date."""


def cell_text(value: Any) -> str:
    """Return the text of a value of a config or a cell: 1, 1.0 and " 1 " all become "1".

    None and NaN become "", booleans "true" and "false". Bytes are read as UTF-8, dates written as in ISO 8601.

    Raises:
        NotTextError: If the value has no text, such as a list.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode().strip()
        except UnicodeDecodeError as error:
            raise NotTextError("bytes that are not UTF-8") from error
    if value is None or isinstance(value, str | int | float | Decimal | date | time):
        return "" if value is None or value != value else str(value).strip()
    if isinstance(value, dict | list | tuple):
        raise NotTextError("an object" if isinstance(value, dict) else "a list")
    raise NotTextError(f"a value of the type {type(value).__name__}")


def text_of(value: Any, column: str, where: str, number: int | None = None) -> str:
    """Return the text of a cell.

    Args:
        value: The cell.
        column: Its column.
        where: Config key of the column, or the place of the row, for the error.
        number: Row number, for the error; None if ``where`` has it.

    Raises:
        InputError: If it has no text; for a list or an object, the fix names its parts.
    """
    try:
        return cell_text(value)
    except NotTextError as error:
        what = _name_cell(column, number)
        if isinstance(value, dict | list | tuple):
            parts = list(value if isinstance(value, dict) else range(len(value)))[:5]
            what = f"{what} is nested, not a text"
            fix = f"name a part of it: {', '.join(f'{column}.{part}' for part in parts)}" if parts else "leave it out"
        else:
            what = f"{what} holds {error}, not a text"
            fix = "name another column, or convert this one"
        raise InputError(what, where=where, fix=fix) from error


def _name_cell(column: str, number: int | None) -> str:
    return f"column {column!r}" + ("" if number is None else f" of row {number}")


def options_of(value: Any, column: str, where: str, number: int | None = None) -> tuple[str, ...]:
    """Return the texts of the options in a cell: of a list, or in a table of its JSON text.

    Args:
        value: The cell; ``column``, ``where`` and ``number`` are those of ``text_of``.
        column: Its column.
        where: Its place, for the error.
        number: Its row, for the error.

    Raises:
        InputError: If it is no list of texts.
    """
    options = value
    if isinstance(value, str):
        try:
            options = json.loads(value)
        except (ValueError, RecursionError):
            options = None
    if not isinstance(options, list | tuple):
        what = f"{_name_cell(column, number)} is not a list"
        fix = 'name a column of lists (in a table of JSON: ["one", "two"]), or a column for each option'
        raise InputError(what, where=where, fix=fix)
    return tuple(text_of(option, f"{column}.{i}", where, number) for i, option in enumerate(options))


def column_type(values: Iterable[Any], *, typed: bool) -> ColumnType:
    """Return what all cells of a column are; cells without content are passed over.

    Args:
        values: The cells.
        typed: Whether the file has types: then a text is a text, however it is spelled.
    """
    found = {_cell_type(value, typed) for value in values if value is not None and value == value and value != ""}
    return found.pop() if len(found) == 1 else "text"


def joint_type(types: Iterable[ColumnType]) -> ColumnType:
    """Return the type of a column that several files have."""
    found = set(types)
    return found.pop() if len(found) == 1 else "text"


def spelling(text: str, column: ColumnType) -> str:
    """Return the one spelling of a value in a column of this type; a text that is no such value stays.

    Args:
        text: The text of the value, by ``cell_text``.
        column: Type of the column.
    """
    if column == "boolean" and text.lower() in _BOOLEANS:
        return text.lower()
    if column == "number" and _NUMBER.fullmatch(text):
        number = Decimal(text)
        if not number:
            return "0"
        digits = f"{number:f}"  # all of them: arithmetic of decimals would round to 28
        return digits.rstrip("0").removesuffix(".") if "." in digits else digits
    return text


def _cell_type(value: Any, typed: bool) -> ColumnType:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float | Decimal):
        return "number"
    if typed or not isinstance(value, str):
        return "text"
    text = value.strip()
    return "boolean" if text.lower() in _BOOLEANS else "number" if _NUMBER.fullmatch(text) else "text"
