"""Rows become examples: texts, options, a label's index or an answer, and a group, as the task's columns say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ttmoe.errors import InputError
from workers.data.columns import ChoiceColumns, GenerateColumns, PairColumns, cell_text
from workers.data.labels import choice_labels, class_labels, describe_rows
from workers.data.rows import Row, column_value, passes_filters
from workers.data.task import Task


@dataclass(frozen=True, slots=True)
class Example:
    """One input and its label: one text or two, options in a choice task alone, a group or "".

    Where text is written the label is 0, and ``answer`` that text; everywhere else it is "".
    """

    texts: tuple[str, ...]
    choices: tuple[str, ...]
    label: int
    group: str
    answer: str = ""

    @property
    def key(self) -> str:
        """The input by which repeats are known: case and white space do not count."""
        # Normalised texts hold no white space but the blank, and \x1f is white space: keys cannot collide.
        return "\x1f".join(" ".join(text.casefold().split()) for text in (*self.texts, *self.choices))


def to_examples(
    rows: Sequence[Row], task: Task, where_name: str, known: Sequence[str] = ()
) -> tuple[list[Example], tuple[str, ...]]:
    """The examples of the rows that pass the task's filters and ranges, and the label names in order.

    ``where_name`` is the task's name, for errors, which count rows from 1 without headers. ``known`` are the
    label names that another split has set, for a task without a mapping; there are none where text is written.
    Raises InputError for an unknown column or label, a label out of range, and an empty text.
    """
    where = f"tasks.{where_name}"
    kept = [(n, row) for n, row in enumerate(rows, 1) if passes_filters(row, task.where, where, n)]
    if task.label is None:
        return _completions(kept, task, where), ()
    values = [(n, column_value(row, task.label.column, f"{where}.label.column", n)) for n, row in kept]
    if task.kind == "choice":
        options = [_choices(row, task, where, n) for n, row in kept]
        names, labels = choice_labels(values, options, task.label, where)
    else:
        options = [()] * len(kept)
        names, labels = class_labels(values, task.label, known, where)
    examples, numbers = [], []
    for (n, row), listed, label in zip(kept, options, labels, strict=True):
        if label is not None:
            examples.append(Example(_texts(row, task, where, n), listed, label, _group(row, task, where, n)))
            numbers.append(n)
    _check_filled(examples, numbers, task, where)
    return examples, names


def _completions(kept: Sequence[tuple[int, Row]], task: Task, where: str) -> list[Example]:
    assert isinstance(task.columns, GenerateColumns)  # the model has checked that columns are of the kind
    place, column = f"{where}.columns.answer", task.columns.answer
    examples = [
        Example(_texts(row, task, where, n), (), 0, _group(row, task, where, n), _text(row, column, place, n))
        for n, row in kept
    ]
    _check_filled(examples, [n for n, _ in kept], task, where)
    return examples


def _text_columns(task: Task) -> dict[str, str]:
    columns = task.columns
    if isinstance(columns, GenerateColumns):
        return {"prompt": columns.prompt}
    if isinstance(columns, PairColumns):
        return {"first": columns.first, "second": columns.second}
    return {"text": columns.text}


def _texts(row: Row, task: Task, where: str, number: int) -> tuple[str, ...]:
    return tuple(_text(row, path, f"{where}.columns.{key}", number) for key, path in _text_columns(task).items())


def _text(row: Row, column: str, where: str, number: int) -> str:
    return _plain(column_value(row, column, where, number), column, where, number)


def _plain(value: Any, column: str, where: str, number: int) -> str:
    if isinstance(value, dict | list | tuple):
        parts = value if isinstance(value, dict) else range(len(value))
        fix = f"Name a part of it: {', '.join(f'{column}.{part}' for part in list(parts)[:5])}."
        raise InputError(f"column {column!r} of row {number} is nested, not a text", where=where, fix=fix)
    return cell_text(value)


def _choices(row: Row, task: Task, where: str, number: int) -> tuple[str, ...]:
    assert isinstance(task.columns, ChoiceColumns)  # the model has checked that columns are of the kind
    place, columns = f"{where}.columns.choices", task.columns.choices
    if not isinstance(columns, str):
        return tuple(_text(row, column, place, number) for column in columns)
    listed = column_value(row, columns, place, number)
    if not isinstance(listed, list | tuple):
        fix = "Name a column that holds a list, or give a list of columns."
        raise InputError(f"column {columns!r} of row {number} holds no list", where=place, fix=fix)
    return tuple(_plain(option, f"{columns}.{i}", place, number) for i, option in enumerate(listed))


def _group(row: Row, task: Task, where: str, number: int) -> str:
    asked = task.split.group
    if asked is None:
        return ""
    text = _text(row, asked.column, f"{where}.split.group.column", number)
    if asked.pattern is not None:
        found = re.search(asked.pattern, text)
        group = (found[1] if found.re.groups else found[0]) if found else ""
    else:
        group = text
    if not group:
        what = f"row {number} has no group: {asked.column!r} is {text!r}"
        raise InputError(what, where=f"{where}.split.group", fix="Correct the pattern, or leave the row out.")
    return group


def _check_filled(examples: list[Example], numbers: list[int], task: Task, where: str) -> None:
    fix = r"Leave such rows out by `where`: matches: '\S'."
    for index, key in enumerate(_text_columns(task)):
        if empty := [n for e, n in zip(examples, numbers, strict=True) if not e.texts[index]]:
            raise InputError(f"{describe_rows(empty)} an empty text", where=f"{where}.columns.{key}", fix=fix)
    if empty := [n for e, n in zip(examples, numbers, strict=True) if not all(e.choices)]:
        raise InputError(f"{describe_rows(empty)} an empty option", where=f"{where}.columns.choices", fix=fix)
    answers = [n for e, n in zip(examples, numbers, strict=True) if not e.answer]
    if answers and isinstance(task.columns, GenerateColumns):
        raise InputError(f"{describe_rows(answers)} an empty answer", where=f"{where}.columns.answer", fix=fix)
