"""Guess a choice among options: a list of options in each row, or a column for each option, and the right one."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from orchestrator.first_config.column_choice import find_labels, find_texts
from orchestrator.first_config.column_names import CHOICES_NAMES, OPTION_COLUMN_NAMES, RIGHT_OPTION_NAMES
from orchestrator.first_config.column_profile import ColumnProfile
from orchestrator.first_config.guess import TaskGuess

_MOST_OPTIONS = 26


def guess_choice(columns: Sequence[ColumnProfile]) -> TaskGuess | None:
    """Return the guess of a task of kind choice; None if the rows have no options, or no index of the right one."""
    found = _list_of_options(columns) or _columns_of_options(columns)
    if found is None:
        return None
    choices, taken, most = found
    named = [each for each in columns if each.plain_name in RIGHT_OPTION_NAMES and each.path not in taken]
    named.sort(key=lambda each: RIGHT_OPTION_NAMES.index(each.plain_name))
    for label in dict.fromkeys(each for each in (*named, *find_labels(columns, taken))):
        names = _index_names(label, most)
        texts = find_texts(columns, [*taken, label.path])
        if names is None or not texts:
            continue
        first = next(iter(names), "")
        unclear = (
            (f"label: {label.path} is taken for the number of the right option, where {first} is the first option",)
            if names
            else ()
        )
        return TaskGuess("choice", {"text": texts[0].path, "choices": choices}, label.path, names, unclear=unclear)
    return None


def _list_of_options(columns: Sequence[ColumnProfile]) -> tuple[str, list[str], int] | None:
    """Return the column of lists, the paths that are taken by it, and the largest number of options."""
    for column in columns:
        parts = column.path.lower().split(".")
        if column.shape != "list" or column.own_name.lower() == "label" or not set(parts) & set(CHOICES_NAMES):
            continue
        if all(len(options) > 1 for options in column.lists):
            stem = column.path.rpartition(".")[0] or column.path  # of choices.text, choices
            taken = [each.path for each in columns if each.path == stem or each.path.startswith(f"{stem}.")]
            return column.path, taken, max(map(len, column.lists))
    return None


def _columns_of_options(columns: Sequence[ColumnProfile]) -> tuple[list[str], list[str], int] | None:
    by_name = {each.plain_name: each for each in reversed(columns) if each.filled}
    for first, second in OPTION_COLUMN_NAMES:
        if first not in by_name or second not in by_name:
            continue
        stem, start = first[:-1], ord(first[-1])
        names = [stem + chr(start + i) for i in range(_MOST_OPTIONS)]
        end = next(i for i, name in enumerate([*names, ""]) if name not in by_name)
        paths = [by_name[name].path for name in names[:end]]
        return paths, paths, end
    return None


def _index_names(label: ColumnProfile, most: int) -> dict[str, str] | None:
    """Return ``label.names`` of the column as the index of an option, empty if none are needed; None if it is none."""
    values = set(label.counts)
    if not values:
        return None
    if values <= {str(i) for i in range(most)} and "0" in values:
        return {}
    letters = dict(zip(ascii_uppercase, map(str, range(most)), strict=False))
    numbers = {str(i + 1): str(i) for i in range(most)}
    for names in (letters, numbers, {key.lower(): index for key, index in letters.items()}, letters | numbers):
        if values <= names.keys():
            return names
    return None
