"""Convert raw label values to indexes into the label names of a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from ttmoe.errors import InputError
from workers.data.cells import ColumnType, spelling, text_of
from workers.data.columns import LabelColumn
from workers.data.rows import as_number, is_within

_INDEX_DIGITS = 9
_SHOWN = 80  # characters of a label in an error

NumberedValues = Sequence[tuple[int, Any]]
"""Row numbers, counted from 1, and raw values."""
NamedLabels = tuple[tuple[str, ...], list[int | None]]
"""Label names in order, and for each value the index of its name; None if the row is to be left out."""


def class_labels(
    values: NumberedValues, label: LabelColumn, known: Sequence[str], where: str, kind: ColumnType = "text"
) -> NamedLabels:
    """Return the label names and the index of each value.

    The names are those of ``label.ranges``, else of ``label.names``, else ``known``, else the sorted distinct values.
    With ranges, a value in none of them has the index None.

    Args:
        values: Raw values with their row numbers.
        label: The label column and its mapping.
        known: Label names of a split that was read before; empty for the first split.
        where: Dotted config key of the task, for errors.
        kind: Type of the label column.

    Raises:
        InputError: If a value is missing, is not among the names, or, if there are ranges, is not a number.
    """
    if label.ranges is not None:
        intervals = list(label.ranges.values())
        column = f"{where}.label.column"
        numbers = [as_number(text_of(value, label.column, column, n), column, n) for n, value in values]
        indexes = [next((i for i, bounds in enumerate(intervals) if is_within(x, *bounds)), None) for x in numbers]
        return tuple(label.ranges), indexes
    texts = _label_texts(values, label, where, kind)
    mapping = _names(label, where, kind) or {name: name for name in known or _sorted({text for _, text in texts})}
    _check_known(texts, mapping, label, where)
    names = tuple(dict.fromkeys(mapping.values()))
    name_index = {value: names.index(name) for value, name in mapping.items()}
    return names, [name_index[text] for _, text in texts]


def choice_labels(
    values: NumberedValues,
    options: Sequence[Sequence[str]],
    label: LabelColumn,
    where: str,
    kind: ColumnType = "text",
) -> NamedLabels:
    """Return the label names of a choice task and the index of the right option of each row.

    The names are the indexes "0", "1", ... of the longest list of options.

    Args:
        values: Raw values with their row numbers.
        options: The options of each row.
        label: The label column; its ``names`` may map raw values to indexes.
        where: Dotted config key of the task, for errors.
        kind: Type of the label column.

    Raises:
        InputError: If a value is missing, not in ``label.names``, or not the index of an option.
    """
    texts = _label_texts(values, label, where, kind)
    names = _names(label, where, kind)
    if names is not None:
        _check_known(texts, names, label, where)
    indexes: list[int | None] = []
    for (n, text), row_options in zip(texts, options, strict=True):
        index = names[text] if names is not None else text
        if not index.isdecimal() or len(index) > _INDEX_DIGITS or int(index) >= len(row_options):
            what = f"label {index[:_SHOWN]!r} of row {n} is out of range"
            what += f": it has {len(row_options)} options, counted from 0"
            fix = "map letters, or indexes that count from 1, with `label.names`: {A: 0, B: 1}"
            raise InputError(what, where=f"{where}.label.column", fix=fix)
        indexes.append(int(index))
    return tuple(str(i) for i in range(max(map(len, options), default=0))), indexes


def describe_rows(numbers: Sequence[int]) -> str:
    """Return a subject and its verb for an error message, such as "3 rows (1, 5, 9) have"."""
    listed = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    return f"row {listed} has" if len(numbers) == 1 else f"{len(numbers)} rows ({listed}) have"


def _label_texts(values: NumberedValues, label: LabelColumn, where: str, kind: ColumnType) -> list[tuple[int, str]]:
    column = f"{where}.label.column"
    texts = [(n, spelling(text_of(value, label.column, column, n), kind)) for n, value in values]
    if empty := [n for n, text in texts if not text]:
        fix = "leave such rows out with `where`: matches: '.'"
        raise InputError(f"{describe_rows(empty)} no label", where=f"{where}.label.column", fix=fix)
    return texts


def _check_known(texts: list[tuple[int, str]], mapping: dict[str, str], label: LabelColumn, where: str) -> None:
    unknown = [(n, text) for n, text in texts if text not in mapping]
    if not unknown:
        return
    n, text = unknown[0]
    what = f"label {text[:_SHOWN]!r} of row {n} is unknown; {describe_rows([n for n, _ in unknown])} an unknown label"
    fix = f"known: {', '.join(mapping)}; add the label to `label.names`, or leave it out with `where`"
    if spelling(text.lstrip("0") or "0", "number") in mapping:
        fix = f"{text!r} is a text, as not all cells of the column read as numbers: write it in quotes in `label.names`"
    raise InputError(what, where=f"{where}.label.{'names' if label.names else 'column'}", fix=fix)


def _names(label: LabelColumn, where: str, kind: ColumnType) -> dict[str, str] | None:
    """Return ``label.names`` in the spelling of the column; raise InputError if two of them are one value."""
    if label.names is None:
        return None
    names: dict[str, str] = {}
    first: dict[str, str] = {}
    for text, name in label.names.items():
        spelled = spelling(text, kind)
        if names.setdefault(spelled, name) != name:
            what = f"{first[spelled]!r} and {text!r} are one value in a column of {kind}s"
            raise InputError(what, where=f"{where}.label.names", fix="keep one of them")
        first.setdefault(spelled, text)
    return names


def _sorted(names: Iterable[str]) -> list[str]:
    """Sort names as numbers if all of them are numbers, so that 10 comes after 9; equal numbers by their text."""
    names = sorted(names)
    try:
        numbers = {name: Decimal(name) for name in names}
    except InvalidOperation:
        return names
    return sorted(names, key=numbers.__getitem__) if all(map(Decimal.is_finite, numbers.values())) else names
