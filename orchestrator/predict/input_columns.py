"""The columns of a row: those that are the model's input, and those that an answer adds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from ttmoe.conversation import Conversation
from ttmoe.encoding import Choice, Input
from ttmoe.errors import InputError
from workers.data.cells import options_of, text_of
from workers.data.rows import Row, column_value, outer_column, value_if_any
from workers.data.tables import joined_names

TEXT, SECOND, CHOICES, MESSAGES = "text", "second", "choices", "messages"
ANSWER = ("task", "label", "confidence", "routing", "scores")
"""The columns that an answer adds: the fields of ``ttmoe.routed.Prediction``."""
_PREFIX = "input_"


def output_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Return the output name of each column of the input.

    Columns keep their names, except those with the name of an ``ANSWER`` column: ``label`` becomes ``input_label``.

    Args:
        names: Names of all columns of the input.
        where: Location of the row, for the error.

    Raises:
        InputError: If the new name is also the name of an input column.
    """
    names = list(names)
    renamed = {name: f"{_PREFIX}{name}" if name in ANSWER else name for name in names}
    for name, new in renamed.items():
        if new != name and new in names:
            what = f"columns {name!r} and {new!r} get the same name beside the answer"
            raise InputError(what, where=where, fix="rename one of them")
    return renamed


@dataclass(frozen=True)
class InputColumns:
    """The names of the input columns; a name may be a dotted path into nested rows, as in a config.

    Attributes:
        text: Column of the text. None means ``text``.
        second: Column of the second text of a pair. None means ``second``, which may be missing.
        choices: One column that holds lists of options, or a column for each option. Empty means ``choices``, which
            may be missing.

    A row without a text may have a column ``messages`` instead: a conversation, as ``Conversation.of`` reads it.
    """

    text: str | None = None
    second: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that may be read, defaults included: of the text, the second text, the choices, the messages."""
        return (self.text or TEXT, self.second or SECOND, *(self.choices or (CHOICES,)), MESSAGES)

    def check(self, available: Iterable[str], where: str) -> None:
        """Raise InputError if a required column is not one of the ``available`` columns of the file ``where``."""
        available = list(available)
        needed = None if self.text is None and MESSAGES in available else self.text or TEXT
        for name in (needed, self.second, *self.choices):
            if name is not None and outer_column(name, available) not in available:
                raise _missing_column(name, available, where)

    def input_of(self, row: Row, where: str) -> Input:
        """Return the model's input for a row: a text, a pair of texts, a choice among options, or a conversation.

        Args:
            row: Values by column name.
            where: Location of the row, for errors.

        Raises:
            InputError: If the row has no text, both a second text and options, or a value of another type.
        """
        name, second_name, *_ = self.names
        if self.text is None and row.get(MESSAGES) and row.get(TEXT) in (None, ""):
            try:
                return Conversation.of(row[MESSAGES])
            except ValueError as error:
                fix = 'write a list of messages: [{"role": "user", "content": "where is it"}]'
                raise InputError(f"column {MESSAGES!r}: {error}", where=where, fix=fix) from error
        if outer_column(name, row) not in row:
            raise _missing_column(name, list(row), where)
        text = text_of(column_value(row, name, where), name, where)
        second = text_of(value_if_any(row, second_name), second_name, where)
        options = self._options(row, where)
        if not text:
            raise InputError(f"column {name!r} is empty", where=where, fix="fill it, or remove the row")
        if second and options:
            raise InputError("the row has a second text and options", where=where, fix="leave one of them empty")
        return Choice(text, options) if options else (text, second) if second else text

    def _options(self, row: Row, where: str) -> tuple[str, ...]:
        if len(self.choices) > 1:
            cells = {name: value_if_any(row, name) for name in self.choices}
            if all(cell is None or not str(cell).strip() for cell in cells.values()):
                return ()
            options = tuple(text_of(cell, name, where) for name, cell in cells.items())
        else:
            name = self.names[2]
            value = value_if_any(row, name)
            if value in (None, [], ()) or value != value or (isinstance(value, str) and value.strip() in ("", "null")):
                return ()
            options = options_of(value, name, where)
        if not all(options):
            raise InputError("an option is empty", where=where, fix="fill it, or remove it")
        return options


def _missing_column(name: str, available: list[str], where: str) -> InputError:
    near = get_close_matches(name, available, 1, 0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    if mark := joined_names(available):
        hint = f"its cells seem to be separated by {mark!r}: write them with commas in CSV, with tabs in TSV; "
    fix = f"{hint}select it with --text, --second or --choices; available: {', '.join(available[:20])}"
    return InputError(f"there is no column {name!r}", where=where, fix=fix)
