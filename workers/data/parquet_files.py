"""Rows of Parquet files. Training and prediction read them by the same rules. pyarrow is imported when one is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttmoe.errors import InputError
from workers.data.rows import Row, outer_column

# What values that Python cannot hold raise: dates after the year 9999, texts that are not UTF-8, unknown time zones.
_UNREADABLE = (OverflowError, ValueError, KeyError)


@contextmanager
def open_parquet(path: str | Path) -> Iterator[Any]:
    """Open a file as ``pyarrow.parquet.ParquetFile``.

    Raises:
        InputError: If it is not a Parquet file, or, while it is read, if it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    fix = "check the format and the ending of the file; if it was copied, copy it again"
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"this is not a Parquet file: {error}", where=str(path), fix=fix) from error
    with file:
        try:
            yield file
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"the file cannot be read: {error}", where=str(path), fix=fix) from error


def parquet_rows(path: Path, columns: Collection[str] | None) -> list[Row]:
    """Return the rows of a file: of the wanted columns, if there are all of them, else of all.

    Args:
        path: The file.
        columns: Columns and dotted paths that are wanted; None for all.

    Raises:
        InputError: If it cannot be read, or two of the columns that are read have one name.
    """
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        wanted = names if columns is None else [outer_column(name, names) for name in columns]
        read = list(dict.fromkeys(wanted)) if set(wanted) <= set(names) else names
        check_repeated(names, read, str(path))
        return python_rows(file.read(read), str(path))


def check_repeated(names: Iterable[str], read: Collection[str], where: str) -> None:
    """Raise InputError if several columns have the name of one that is read."""
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1 and name in read):
        what = f"repeated column names: {', '.join(repeated)}"
        raise InputError(what, where=where, fix="write the file again with other names")


def python_rows(table: Any, where: str) -> list[Row]:
    """Return the rows of a table or batch of pyarrow.

    Raises:
        InputError: If a column has a value that Python cannot hold, such as a date in the year 20000.
    """
    try:
        return table.to_pylist()  # type: ignore[no-any-return]
    except _UNREADABLE as error:
        for name in table.schema.names:
            try:
                table.column(name).to_pylist()
            except _UNREADABLE:
                fix = "convert the column to text, or leave it out of the file"
                raise InputError(f"column {name!r} cannot be read: {error}", where=where, fix=fix) from error
        raise
