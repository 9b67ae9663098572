"""Raw label values become indexes into a task's label names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ttmoe.errors import InputError
from workers.data.columns import LabelColumn, cell_text
from workers.data.rows import as_number, is_within

Values = Sequence[tuple[int, Any]]  # row number, counted from 1, and raw value
Labels = tuple[tuple[str, ...], list[int | None]]  # names, and for each value an index or None: leave it out


def class_labels(values: Values, label: LabelColumn, known: Sequence[str], where: str) -> Labels:
    """Label names in order, and each value's index: by ranges, by names, or by the sorted distinct values.

    ``known`` are the names without a mapping, where another split has set them. ``where`` is the task's
    dotted key. Raises InputError for a value that the mapping does not know.
    """
    if label.ranges is not None:
        spans = list(label.ranges.values())
        numbers = [as_number(cell_text(value), f"{where}.label.column", n) for n, value in values]
        found = [next((i for i, span in enumerate(spans) if is_within(x, *span)), None) for x in numbers]
        return tuple(label.ranges), found
    raw = _present(values, where)
    mapping = label.names or {name: name for name in known or _sorted({text for _, text in raw})}
    _check_known(raw, mapping, label, where)
    names = tuple(dict.fromkeys(mapping.values()))
    index = {value: names.index(name) for value, name in mapping.items()}
    return names, [index[text] for _, text in raw]


def choice_labels(values: Values, options: Sequence[Sequence[str]], label: LabelColumn, where: str) -> Labels:
    """The index of each row's right option; ``label.names`` may map raw values to indexes.

    The names are the indexes of the longest list of options. Raises InputError for an index out of range.
    """
    raw = _present(values, where)
    if label.names is not None:
        _check_known(raw, label.names, label, where)
    indexes: list[int | None] = []
    for (n, text), listed in zip(raw, options, strict=True):
        said = label.names[text] if label.names is not None else text
        if not said.isdecimal() or int(said) >= len(listed):
            what = f"label {said!r} of row {n} is out of range: it has {len(listed)} options, counted from 0"
            fix = "Map letters, or counts from 1, by `label.names`: {A: 0, B: 1}."
            raise InputError(what, where=f"{where}.label.column", fix=fix)
        indexes.append(int(said))
    return tuple(str(i) for i in range(max(map(len, options), default=0))), indexes


def _present(values: Values, where: str) -> list[tuple[int, str]]:
    raw = [(n, cell_text(value)) for n, value in values]
    if empty := [n for n, text in raw if not text]:
        fix = "Leave such rows out by `where`: matches: '.'"
        raise InputError(f"{describe_rows(empty)} no label", where=f"{where}.label.column", fix=fix)
    return raw


def _check_known(raw: list[tuple[int, str]], mapping: dict[str, str], label: LabelColumn, where: str) -> None:
    strange = [(n, text) for n, text in raw if text not in mapping]
    if not strange:
        return
    n, text = strange[0]
    what = f"label {text!r} of row {n} is unknown; {describe_rows([n for n, _ in strange])} an unknown label"
    fix = f"Known: {', '.join(mapping)}. Add it to `label.names`, or leave it out by `where`."
    if label.names and {"true", "false"} & mapping.keys():
        fix += " YAML reads a bare yes or no as true or false: quote it."
    raise InputError(what, where=f"{where}.label.{'names' if label.names else 'column'}", fix=fix)


def describe_rows(numbers: Sequence[int]) -> str:
    """A subject and its verb, such as "3 rows (1, 5, 9) have"."""
    listed = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    return f"row {listed} has" if len(numbers) == 1 else f"{len(numbers)} rows ({listed}) have"


def _sorted(names: Iterable[str]) -> list[str]:
    """As numbers where all are numbers, so that 10 comes after 9."""
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)
