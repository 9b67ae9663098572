"""What a column of unknown rows contains: texts, numbers, lists or conversations; how many values; how long they are.

Nested rows are described by the dotted paths of their values, as a config names them: ``data.text``, ``labels.0``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from ttmoe.conversation import Conversation
from workers.data.cells import NotTextError, cell_text, column_type
from workers.data.rows import Row

Shape = Literal["text", "number", "boolean", "list", "messages"]

SAMPLED_PROFILE_ROWS = 5000
_DEEPEST = 8  # levels of nested rows
_MOST_COLUMNS = 300
_MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?|\d{1,2}[./]\d{1,2}[./]\d{2,4}([T ,].*)?|\d{1,2}:\d{2}(:\d{2})?")
_LINK = re.compile(r"(https?://|www\.)\S+$")
_CODE = re.compile(r"[0-9a-fA-F-]{16,}|[A-Za-z]{0,4}[-_]?\d{4,}")


@dataclass(frozen=True, eq=False)
class ColumnProfile:
    """A column, or the values at a dotted path.

    Attributes:
        path: Name or dotted path.
        shape: What most values are.
        rows: Number of rows that were looked at.
        values: The texts of the filled cells; of lists and conversations none.
        lists: The lists, if ``shape`` is ``list``.
    """

    path: str
    shape: Shape
    rows: int
    values: tuple[str, ...]
    lists: tuple[list[Any], ...] = ()

    @property
    def words(self) -> frozenset[str]:
        """The words of the column's own name in lower case: of ``data.reviewText`` review and text."""
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.own_name)
        return frozenset(filter(None, re.split(r"[^a-z0-9]+", spaced.lower())))

    @property
    def own_name(self) -> str:
        """The last part of the path that is no index of a list."""
        parts = [part for part in self.path.split(".") if not part.lstrip("-").isdecimal()]
        return parts[-1] if parts else self.path

    @property
    def plain_name(self) -> str:
        """The own name in lower case, with ``_`` for other characters."""
        return re.sub(r"[^a-z0-9]+", "_", self.own_name.lower()).strip("_")

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value occurs."""
        return Counter(self.values)

    @property
    def filled(self) -> int:
        """Number of cells with content."""
        return len(self.lists) if self.shape == "list" else len(self.values)

    @cached_property
    def mean_length(self) -> float:
        """Mean number of characters of a filled cell."""
        return sum(map(len, self.values)) / max(1, len(self.values))

    @cached_property
    def is_reference(self) -> bool:
        """Whether the values are dates, links or identifiers, which are neither texts nor labels."""
        some = self.values[:200]
        return bool(some) and any(
            sum(form.fullmatch(value) is not None for value in some) > 0.8 * len(some) for form in (_DATE, _LINK, _CODE)
        )


def profile_columns(rows: Sequence[Row]) -> list[ColumnProfile]:
    """Return the profiles of all columns, in their order, by a sample of evenly spaced rows."""
    step = max(1, len(rows) // SAMPLED_PROFILE_ROWS)
    sample = rows[::step]
    values: dict[str, list[Any]] = {}
    for row in sample:
        for path, value in _leaves(row):
            if path in values or len(values) < _MOST_COLUMNS:
                values.setdefault(path, []).append(value)
    return [_profile(path, cells, len(sample)) for path, cells in values.items()]


def is_conversation(value: Any) -> bool:
    """Return whether a value is a list of messages, or its JSON text."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict) and any(keys <= value[0].keys() for keys in _MESSAGE_KEYS)
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return False
    try:
        return bool(Conversation.of(value).messages)
    except ValueError:
        return False


def _leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield path and value of everything in a row that is no object: of lists of objects, the first one's."""
    if isinstance(value, dict) and depth < _DEEPEST:
        for key, inner in value.items():
            if str(key).strip():
                yield from _leaves(inner, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list | tuple) and value and not is_conversation(value):
        if isinstance(value[0], dict):
            yield from _leaves(value[0], f"{path}.0", depth + 1)
        elif isinstance(value[0], list | tuple):
            return  # such as marked spans of a text
        else:
            yield path, list(value)
            yield f"{path}.0", value[0]
    elif value is not None and value != []:
        yield path, value


def _profile(path: str, cells: list[Any], rows: int) -> ColumnProfile:
    lists = [cell for cell in cells if isinstance(cell, list)]
    if lists and is_conversation(lists[0]):
        return ColumnProfile(path, "messages", rows, (), tuple(lists))
    if lists:
        return ColumnProfile(path, "list", rows, (), tuple(lists))
    texts = tuple(filter(None, map(_text_or_nothing, cells)))
    if texts and all(map(is_conversation, texts[:20])):
        return ColumnProfile(path, "messages", rows, (), ())
    return ColumnProfile(path, _shape_of(cells), rows, texts)


def _shape_of(cells: Iterable[Any]) -> Shape:
    shape: Shape = column_type(cells, typed=False)
    return shape


def _text_or_nothing(cell: Any) -> str:
    try:
        return cell_text(cell)
    except NotTextError:
        return ""
