"""Rows out of JSON Lines, CSV, TSV and Parquet files, a piece at a time: memory does not grow with the file.

Texts come exactly as they stand there: readers that guess types turn "007" into 7 and "2024-01-01" into a date. And a
bad row is known by its line.
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from orchestrator.predict.input_columns import Row
from ttmoe.errors import InputError
from workers.data.sources import ENDINGS, json_row

_AT_ONCE = 1024  # rows of a Parquet file that are in memory


@dataclass(frozen=True)
class FileChunk:
    """Rows of one file that follow each other: ``rows`` of them (None: all) after ``offset`` bytes and ``lines`` lines.

    In a Parquet file ``offset`` counts rows.
    """

    path: str
    form: str
    offset: int = 0
    lines: int = 0
    rows: int | None = None


class ReadRow(NamedTuple):
    """A row, where it stands, and the ``offset`` and ``lines`` of what comes after it."""

    row: Row
    where: str
    offset: int
    lines: int


def find_files(pattern: str) -> list[FileChunk]:
    """The files that a path or a glob pattern names, by name. Raises InputError for none, or for several formats."""
    found = [Path(pattern)] if Path(pattern).is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
    files = [path for path in found if path.is_file()]
    if not files:
        raise InputError("there is no such file", where=pattern, fix="name a file, or a quoted pattern: 'in/*.jsonl'")
    forms = {path: file_format(path) for path in files}
    if len(set(forms.values())) > 1:
        fix = "ask for one format at a time"
        raise InputError(f"files of several formats: {', '.join(sorted(set(forms.values())))}", where=pattern, fix=fix)
    return [FileChunk(str(path.resolve()), form) for path, form in forms.items()]


def file_format(path: Path) -> str:
    """jsonl, csv, tsv or parquet, by the name's ending."""
    if form := ENDINGS.get(path.suffix.lower()):
        return form
    fix = "use .jsonl, .csv, .tsv or .parquet"
    raise InputError(f"the ending {path.suffix!r} tells no format", where=str(path), fix=fix)


def read_chunk(piece: FileChunk, only: Sequence[str] | None = None) -> Iterator[ReadRow]:
    """The rows of a piece; of a Parquet file only the columns ``only``, if given. Raises InputError for a bad row."""
    readers = {"jsonl": _json_rows, "parquet": lambda piece: _parquet_rows(piece, only)}
    return islice(readers.get(piece.form, _table_rows)(piece), piece.rows)


def decode_line(raw: bytes, where: str) -> str:
    """A line as text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = raw[error.start : error.start + 4]
        raise InputError(f"{bad!r} is not UTF-8", where=where, fix="convert it to UTF-8") from error


class _Lines:
    """A file's lines, and how far they were read."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.file, self.path, self.offset, self.number = file, path, 0, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self.file.readline()  # only line feeds end a line: texts may hold U+2028
        if not raw:
            raise StopIteration
        self.offset, self.number = self.offset + len(raw), self.number + 1
        text = decode_line(raw, self.where)
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def go_to(self, piece: FileChunk) -> None:
        self.file.seek(piece.offset)
        self.offset, self.number = piece.offset, piece.lines

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"


def _json_rows(piece: FileChunk) -> Iterator[ReadRow]:
    with Path(piece.path).open("rb") as file:
        lines = _Lines(file, piece.path)
        lines.go_to(piece)
        for line in lines:
            if line.strip():
                yield ReadRow(json_row(line, lines.where), lines.where, lines.offset, lines.number)


def _table_rows(piece: FileChunk) -> Iterator[ReadRow]:
    csv.field_size_limit(2**31 - 1)  # the limit is 128 KiB by default, and documents are longer
    separator = "," if piece.form == "csv" else "\t"
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if piece.form == "csv" else csv.QUOTE_NONE
    with Path(piece.path).open("rb") as file:
        lines = _Lines(file, piece.path)
        cells = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        header = next(_table_cells(cells, lines), None)
        if header is None:
            return
        names, where = header
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"columns named twice: {', '.join(twice)}", where=where, fix="rename them")
        if piece.offset:
            lines.go_to(piece)
        for row, where in _table_cells(cells, lines):
            if len(row) != len(names):
                what = f"the row has {len(row)} cells, the header {len(names)}"
                raise InputError(what, where=where, fix="correct the row, or put quotes around its texts")
            yield ReadRow(dict(zip(names, row, strict=True)), where, lines.offset, lines.number)


def _table_cells(cells: Iterator[list[str]], lines: _Lines) -> Iterator[tuple[list[str], str]]:
    while True:
        where = f"{lines.path}:{lines.number + 1}"
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as error:
            fix = "correct the row: quotes inside a quoted text are doubled"
            raise InputError(f"the row cannot be read: {error}", where=where, fix=fix) from error
        if row:
            yield row, where


def open_parquet(path: str) -> Any:
    """The opened file. Raises InputError for what is no Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise InputError(f"this is no Parquet file: {error}", where=path, fix="check the file's ending") from error


def _parquet_rows(piece: FileChunk, only: Sequence[str] | None) -> Iterator[ReadRow]:
    with open_parquet(piece.path) as file:
        first, skip, number = 0, piece.offset, piece.offset
        while first < file.num_row_groups and skip >= (rows := file.metadata.row_group(first).num_rows):
            first, skip = first + 1, skip - rows
        groups = range(first, file.num_row_groups)
        for batch in file.iter_batches(_AT_ONCE, row_groups=list(groups), columns=only):
            for row in batch.slice(min(skip, batch.num_rows)).to_pylist():
                number += 1
                yield ReadRow(row, f"{piece.path}, row {number}", number, number)
            skip = max(skip - batch.num_rows, 0)
