"""Which columns could be the label or the text of a task, the best one first."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchestrator.first_config.column_names import LABEL_NAMES, LABEL_WORDS, OTHER_NAMES, TEXT_NAMES
from orchestrator.first_config.column_profile import ColumnProfile

_NOT_NAMED = 1000
_SURE_NAMES = 4  # of LABEL_NAMES, the first ones
_LONGEST_LABEL = 60  # characters, on average
_MOST_LABELS = 1000
_MOST_UNNAMED_LABELS = 100
_OTHER_WORDS = frozenset(("id", "confidence", "count", "date", "time", "url", "probability"))  # in no name of a label
_FEW_TEXTS = 0.05  # share of different values below which a column is hardly a text
_MOST_NUMBERS = 20  # values of a column of numbers that is a label, if they have decimals or its name is a quantity's
_QUANTITIES = frozenset(("score", "rating", "stars", "overall", "priority", "severity", "level"))
_OF_LABEL_TOOL = "annotations."  # what a person answered, in an export of Label Studio; other columns came with the row


def is_named_label(column: ColumnProfile) -> bool:
    """Return whether the column has the name of a label."""
    return _label_rank(column) < _NOT_NAMED


def has_label_name(column: ColumnProfile) -> bool:
    """Return whether the column has a name that nothing but a label has."""
    return _label_rank(column) < _SURE_NAMES


def is_named_text(column: ColumnProfile) -> bool:
    """Return whether the column has the name of a text."""
    return column.plain_name in TEXT_NAMES or bool(column.words & set(TEXT_NAMES))


def find_labels(columns: Sequence[ColumnProfile], without: Collection[str] = ()) -> list[ColumnProfile]:
    """Return the columns that could be the label: those with the name of one, then those with few values.

    Args:
        columns: All columns.
        without: Paths of columns that are something else.
    """
    found = [each for each in columns if each.path not in without and _could_be_label(each)]
    return sorted(
        found, key=lambda each: (len(each.counts) < 2, _label_rank(each), each.shape != "text", len(each.counts))
    )


def find_texts(columns: Sequence[ColumnProfile], without: Collection[str] = ()) -> list[ColumnProfile]:
    """Return the columns that could be the text: those with the name of one, then the others, the longest first.

    Args:
        columns: All columns.
        without: Paths of columns that are something else.
    """
    found = [
        each
        for each in columns
        if each.path not in without
        and each.shape == "text"
        and len(each.counts) > 1
        and each.plain_name not in OTHER_NAMES
        and not each.is_reference
        and not each.path.endswith(".0")
    ]
    return sorted(found, key=lambda each: (_text_rank(each), -each.mean_length))


def _text_rank(column: ColumnProfile) -> int:
    if len(column.counts) <= _FEW_TEXTS * column.filled:
        return 3
    return 0 if column.plain_name in TEXT_NAMES else 1 if is_named_text(column) else 2


def _label_rank(column: ColumnProfile) -> int:
    if column.path.startswith(_OF_LABEL_TOOL) and column.plain_name in LABEL_NAMES:
        return -1
    if column.plain_name in LABEL_NAMES:
        return LABEL_NAMES.index(column.plain_name)
    return 100 if column.words & LABEL_WORDS and not column.words & _OTHER_WORDS else _NOT_NAMED


def _could_be_label(column: ColumnProfile) -> bool:
    different, filled = len(column.counts), column.filled
    if column.shape in ("list", "messages") or not filled or column.plain_name in OTHER_NAMES or column.is_reference:
        return False
    if column.mean_length > _LONGEST_LABEL or different > _MOST_LABELS:
        return False
    is_quantity = column.words & _QUANTITIES or any("." in value for value in column.counts)
    if column.shape == "number" and different > _MOST_NUMBERS and is_quantity:
        return False
    if is_named_label(column):  # in few rows, or of one value: the output says so
        return different <= filled / 2 or (filled < 30 and (different < filled or has_label_name(column)))
    several = 2 <= different <= min(_MOST_UNNAMED_LABELS, filled / 3)
    return several and filled > 0.5 * column.rows and not column.words & _OTHER_WORDS
