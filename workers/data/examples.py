"""Convert rows to examples (texts, options, label or answer, group) by the columns of a task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ttmoe.conversation import Conversation, Message, answered_part
from ttmoe.errors import InputError
from workers.data.cells import ColumnType, options_of, text_of
from workers.data.columns import ChatColumns, ChoiceColumns, GenerateColumns, PairColumns, PromptColumns
from workers.data.labels import choice_labels, class_labels, describe_rows
from workers.data.rows import Row, check_filter_columns, column_value, failed_filter
from workers.data.task import Task


@dataclass(frozen=True, slots=True)
class Example:
    """One input and its label.

    Attributes:
        texts: One text, or two in a pair task; in a chat task what the router reads, see ``Conversation.text``.
        choices: The options of a choice task; empty in the other kinds.
        label: Index into the label names of the task; 0 in a generate or chat task, and without labels.
        group: Group name; "" if the task has no groups.
        answer: The text to generate, in a chat task the assistant's last turn; "" in the other kinds.
        messages: The whole conversation of a chat task; empty in the other kinds.
    """

    texts: tuple[str, ...]
    choices: tuple[str, ...]
    label: int
    group: str
    answer: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def key(self) -> str:
        """The input in the form by which repeats are detected: case and white space are ignored."""
        # Normalised texts contain no white space but single blanks, and \x1f is white space: keys cannot collide.
        texts = (*self.texts, *self.choices)
        if self.messages:  # the assistant's turns before the answer are part of the input
            texts = tuple(part for message in Conversation(self.messages).prompt.messages for part in message)
        return "\x1f".join(" ".join(text.casefold().split()) for text in texts)


def to_examples(
    rows: Sequence[Row],
    task: Task,
    task_name: str,
    known: Sequence[str] = (),
    types: Mapping[str, ColumnType] | None = None,
    filtered: Counter[int] | None = None,
) -> tuple[list[Example], tuple[str, ...]]:
    """Convert the rows that pass the filters and label ranges of a task.

    Args:
        rows: Rows of one split. Errors count them from 1, without headers.
        task: The task.
        task_name: Name of the task in the config, for errors.
        known: Label names of another split, used if the task has no label mapping.
        types: Types of the columns of label and filters, see ``compared_columns``; texts if unknown.
        filtered: Counts the rows that each filter leaves out, by its index.

    Returns:
        The examples, and the label names in order (none for a task that generates text, and for rows without labels).

    Raises:
        InputError: If a column or label is unknown, a label is out of range, or a text is empty.
    """
    where, types = f"tasks.{task_name}", types or {}
    check_filter_columns(rows, task.where, where)
    failed = [failed_filter(row, task.where, types, where, n) for n, row in enumerate(rows, 1)]
    if filtered is not None:
        filtered.update(index for index in failed if index is not None)
    kept = [(n, row) for n, (row, index) in enumerate(zip(rows, failed, strict=True), 1) if index is None]
    if task.label is None:
        return _unlabelled_examples(kept, task, where), ()
    values = [(n, column_value(row, task.label.column, f"{where}.label.column", n)) for n, row in kept]
    kind = types.get(task.label.column, "text")
    if task.kind == "choice":
        options = [_choices(row, task, where, n) for n, row in kept]
        names, labels = choice_labels(values, options, task.label, where, kind)
    else:
        options = [()] * len(kept)
        names, labels = class_labels(values, task.label, known, where, kind)
    examples, numbers = [], []
    for (n, row), choices, label in zip(kept, options, labels, strict=True):
        if label is not None:
            examples.append(Example(_texts(row, task, where, n), choices, label, _group(row, task, where, n)))
            numbers.append(n)
    _check_filled(examples, numbers, task, where)
    return examples, names


def compared_columns(task: Task) -> list[str]:
    """Return the columns whose values are compared with those of the config: of the label and of the filters."""
    return [*([task.label.column] if task.label else []), *(each.column for each in task.where)]


def read_columns(task: Task) -> set[str]:
    """Return all columns that the task names, as column names or dotted paths."""
    columns = {*compared_columns(task), *_text_columns(task).values()}
    for more in (getattr(task.columns, "choices", ()), getattr(task.columns, "answer", ())):
        columns |= {more} if isinstance(more, str) else set(more)
    return columns | ({task.split.group.column} if task.split.group else set())


def _unlabelled_examples(kept: Sequence[tuple[int, Row]], task: Task, where: str) -> list[Example]:
    """Return examples of inputs with their answers, in a task that generates text, or of inputs alone."""
    if isinstance(task.columns, ChatColumns):
        return [_conversation(row, task.columns.messages, task, where, n) for n, row in kept]
    key = f"{where}.columns.answer"
    column = task.columns.answer if isinstance(task.columns, GenerateColumns) else None
    examples = [
        Example(
            _texts(row, task, where, n),
            _choices(row, task, where, n) if task.kind == "choice" else (),
            0,
            _group(row, task, where, n),
            _text(row, column, key, n) if column else "",
        )
        for n, row in kept
    ]
    _check_filled(examples, [n for n, _ in kept], task, where)
    return examples


def _conversation(row: Row, column: str, task: Task, where: str, number: int) -> Example:
    """Return the example of a conversation, up to the last answer, or before it if none is wanted."""
    key = f"{where}.columns.messages"
    value = column_value(row, column, key, number)
    try:
        found = Conversation.of(value)
    except ValueError as error:
        fix = "correct the row, or leave it out with `where`"
        raise InputError(f"column {column!r} of row {number}: {error}", where=key, fix=fix) from error
    if task.routing_rows:
        found = found.prompt
    elif messages := answered_part(found.messages):
        found = Conversation(messages)
    else:
        what = f"column {column!r} of row {number}: no message of the assistant follows one of the user"
        raise InputError(what, where=key, fix="leave such rows out with `where`")
    group = _group(row, task, where, number)
    return Example((found.prompt.text,), (), 0, group, found.answer, found.messages)


def _text_columns(task: Task) -> dict[str, str]:
    """Return the text columns of the task by their config key."""
    columns = task.columns
    assert columns is not None  # declared rows have none, and are not read
    if isinstance(columns, GenerateColumns | PromptColumns):
        return {"prompt": columns.prompt}
    if isinstance(columns, PairColumns):
        return {"first": columns.first, "second": columns.second}
    if isinstance(columns, ChatColumns):
        return {"messages": columns.messages}
    return {"text": columns.text}


def _texts(row: Row, task: Task, where: str, number: int) -> tuple[str, ...]:
    return tuple(_text(row, column, f"{where}.columns.{key}", number) for key, column in _text_columns(task).items())


def _text(row: Row, column: str, where: str, number: int) -> str:
    return text_of(column_value(row, column, where, number), column, where, number)


def _choices(row: Row, task: Task, where: str, number: int) -> tuple[str, ...]:
    assert isinstance(task.columns, ChoiceColumns)  # the model has checked that the columns fit the kind
    key, columns = f"{where}.columns.choices", task.columns.choices
    if not isinstance(columns, str):
        return tuple(_text(row, column, key, number) for column in columns)
    return options_of(column_value(row, columns, key, number), columns, key, number)


def _group(row: Row, task: Task, where: str, number: int) -> str:
    settings = task.split.group
    if settings is None:
        return ""
    text = group = _text(row, settings.column, f"{where}.split.group.column", number)
    if settings.pattern is not None:
        match = re.search(settings.pattern, text)
        group = (match[1] if match.re.groups else match[0]) if match else ""
    if not group:
        what = f"row {number} has no group: {settings.column!r} is {text!r}"
        raise InputError(what, where=f"{where}.split.group", fix="correct the pattern, or leave the row out")
    return group


def _check_filled(examples: list[Example], numbers: list[int], task: Task, where: str) -> None:
    """Raise InputError if a text, an option or an answer is empty."""

    def check(filled: list[bool], what: str, key: str) -> None:
        if empty := [n for ok, n in zip(filled, numbers, strict=True) if not ok]:
            fix = r"leave such rows out with `where`: matches: '\S'"
            raise InputError(f"{describe_rows(empty)} an empty {what}", where=f"{where}.columns.{key}", fix=fix)

    for index, key in enumerate(_text_columns(task)):
        check([bool(example.texts[index]) for example in examples], "text", key)
    check([all(example.choices) for example in examples], "option", "choices")
    if isinstance(task.columns, GenerateColumns):
        check([bool(example.answer) for example in examples], "answer", "answer")
