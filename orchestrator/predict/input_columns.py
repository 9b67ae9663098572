"""Which columns of a row are its input: the text, and a second text or the options beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ttmoe.encoding import Choice, Input
from ttmoe.errors import InputError
from workers.data.columns import cell_text
from workers.data.rows import Row

TEXT, SECOND, CHOICES = "text", "second", "choices"


ANSWER = ("task", "label", "confidence", "routing", "scores")
"""The columns that an answer adds."""
_INPUT = "input_"


def output_names(names: Iterable[str], where: str) -> dict[str, str]:
    """What the input's columns are called beside the answer: as they were, but ``label`` becomes ``input_label``.

    Raises InputError where that name is taken, too.
    """
    names = list(names)
    kept = {name: f"{_INPUT}{name}" if name in ANSWER else name for name in names}
    if clash := next((new for name, new in kept.items() if new != name and new in names), None):
        raise InputError(f"the answer needs the name of two columns, {clash.removeprefix(_INPUT)!r} and {clash!r}",
                         where=where, fix="rename one of them")  # fmt: skip
    return kept


@dataclass(frozen=True)
class InputColumns:
    """The columns that were named; without a name they are ``text``, ``second`` and ``choices``.

    The last two may be missing or empty. ``choices`` is one column that holds lists, or a column for each option.
    """

    text: str | None = None
    second: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def looked_at(self) -> tuple[str, ...]:
        """Every column that may be read."""
        return (self.text or TEXT, self.second or SECOND, *(self.choices or (CHOICES,)))

    def check(self, names: Iterable[str], where: str) -> None:
        """Raises InputError when the text's column, or one that was named, is not among ``names``."""
        there = list(names)
        for name in (self.text or TEXT, self.second, *self.choices):
            if name is not None and name not in there:
                raise InputError(f"there is no column {name!r}", where=where, fix=_nearest(name, there))

    def input_of(self, row: Row, where: str) -> Input:
        """What the model is asked for this row: one text, a pair, or a choice among options.

        Raises InputError for a row without a text, or with a second text and options both.
        """
        name = self.text or TEXT
        if name not in row:
            raise InputError(f"the row has no column {name!r}", where=where, fix=_nearest(name, list(row)))
        text, second = (_plain(row.get(column), column, where) for column in (name, self.second or SECOND))
        options = self._options(row, where)
        if not text:
            raise InputError(f"column {name!r} is empty", where=where, fix="leave the row out, or fill it")
        if second and options:
            fix = "leave one of them empty"
            raise InputError("the row has a second text, and options to choose among", where=where, fix=fix)
        return Choice(text, options) if options else (text, second) if second else text

    def _options(self, row: Row, where: str) -> tuple[str, ...]:
        if len(self.choices) > 1:
            listed: Any = [row.get(name) for name in self.choices]
            if not any(cell_text(option) for option in listed):
                return ()
        else:
            listed = _listed(row.get((self.choices or (CHOICES,))[0]), where)
        options = tuple(_plain(option, CHOICES, where) for option in listed)
        if not all(options):
            raise InputError("an option is empty", where=where, fix="leave it out, or fill it")
        return options


def _listed(value: Any, where: str) -> list[Any]:
    """The options that a cell holds: a list, or in a table the JSON of one."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            value = {}
    if isinstance(value, list | tuple):
        return list(value)
    if value is not None and (isinstance(value, dict) or cell_text(value)):
        fix = 'write ["one", "two"], or name a column for each option'
        raise InputError("the options are no list", where=where, fix=fix)
    return []


def _plain(value: Any, name: str, where: str) -> str:
    """The cell as tasks read it for training: numbers as they are written, white space at the ends gone."""
    if isinstance(value, dict | list | tuple):
        raise InputError(f"column {name!r} is nested, not a text", where=where, fix="name a column that holds texts")
    return cell_text(value)


def _nearest(name: str, there: list[str]) -> str:
    near = get_close_matches(name, there, 1, 0.6)
    first = f"did you mean {near[0]!r}? " if near else ""
    return f"{first}name it with --text, --second or --choices; there are: {', '.join(there[:20])}"
