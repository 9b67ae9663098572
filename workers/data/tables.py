"""Rows of CSV and TSV files: the header, and cells below it. Training and prediction read them by the same rules."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ttmoe.errors import InputError


def table_reader(lines: Iterable[str], delimiter: str, quotes: bool) -> Any:
    """Return a reader of the cells of each record.

    Args:
        lines: The lines with their ends.
        delimiter: What separates cells.
        quotes: Whether ``"`` encloses cells.

    Returns:
        A ``csv.reader``.
    """
    csv.field_size_limit(2**31 - 1)  # the default limit is 128 KiB, and documents may be longer
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)


def joined_names(names: Sequence[str]) -> str:
    """Return what seems to separate the cells of a table that was read with one column; empty if nothing does."""
    (name,) = names if len(names) == 1 else ("",)
    return next((mark for mark in (";", "\t", "|", ",") if mark in name), "")


@dataclass(frozen=True)
class TableHeader:
    """The names of a table's columns.

    One column may have no name, such as the index that pandas writes. Of several, as spreadsheets leave them, those
    without content are passed over.

    Attributes:
        names: The names; "" for a column without one.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, cells: Sequence[str], where: str) -> TableHeader:
        """Return the header of these cells; raise InputError if two columns have one name, or none has a name."""
        names = tuple(name if name.strip() else "" for name in cells)
        if repeated := sorted({name for name in names if name and names.count(name) > 1}):
            raise InputError(f"repeated column names: {', '.join(repeated)}", where=where, fix="rename them")
        if not any(names):
            raise InputError("no column has a name", where=where, fix="write the names of the columns in the first row")
        return cls(names)

    def row(self, cells: Sequence[str], where: str, fix: str) -> dict[str, str]:
        """Return the cells by column name.

        Args:
            cells: The cells of a record.
            where: Its place, for errors.
            fix: Advice if their number is not that of the header.

        Raises:
            InputError: If there are more or fewer cells than names, or one in a column without a name.
        """
        if len(cells) != len(self.names):
            missing = self.names[len(cells) :]
            if len(cells) > len(self.names) or any(missing):
                raise InputError(f"the row has {len(cells)} cells, the header {len(self.names)}", where=where, fix=fix)
        if self.names.count("") < 2:
            return dict(zip(self.names, cells, strict=False))
        for number, (name, cell) in enumerate(zip(self.names, cells, strict=False), 1):
            if not name and cell.strip():
                what = f"column {number} has no name, and here it holds {cell.strip()[:40]!r}"
                raise InputError(what, where=where, fix="name it in the first row, or empty it")
        return {name: cell for name, cell in zip(self.names, cells, strict=False) if name}
