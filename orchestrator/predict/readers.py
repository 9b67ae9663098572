"""Read rows of JSON Lines, CSV, TSV and Parquet files in chunks, so that memory does not grow with the file.

Arrays of JSON, and files that are compressed or in UTF-16, are read as a whole.

Texts stay exactly as in the file: readers that infer types turn "007" into 7 and "2024-01-01" into a date. Errors name
the line of a bad row.
"""

from __future__ import annotations

import csv
import glob
import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from orchestrator.predict.input_columns import Row
from ttmoe.errors import InputError
from workers.data.parquet_files import open_parquet, python_rows
from workers.data.sources import ENDINGS, json_array, json_row
from workers.data.tables import TableHeader, table_reader
from workers.data.text_files import GZIP_ENDING, UTF_8, decode_text, file_text, is_plain, split_lines

_PARQUET_BATCH = 1024  # rows of a Parquet file in memory
_JSON_ARRAY = "json"  # a file with one array of objects, which is read as a whole
_FIRST_BYTES = 4096


@dataclass(frozen=True)
class FileChunk:
    """Consecutive rows of one file.

    Attributes:
        path: Absolute path of the file.
        form: ``jsonl``, ``csv``, ``tsv``, ``parquet``, or ``json`` for an array.
        offset: Bytes before the chunk; in a Parquet file or an array, rows.
        lines: Lines before the chunk.
        rows: Number of rows. None means all that follow.
        encoding: Encoding of the file.
        delimiter: What separates the cells of a table; "" for that of its form.
        quotes: Whether quotes enclose cells of a table.
    """

    path: str
    form: str
    offset: int = 0
    lines: int = 0
    rows: int | None = None
    encoding: str = UTF_8
    delimiter: str = ""
    quotes: bool = False


class ReadRow(NamedTuple):
    """A row of a file.

    Attributes:
        row: Values by column name.
        where: Location of the row: file and line.
        offset: Bytes up to the end of the row; in a Parquet file or an array, rows.
        lines: Lines up to the end of the row.
    """

    row: Row
    where: str
    offset: int
    lines: int


def find_files(pattern: str, encoding: str = UTF_8, delimiter: str = "", quotes: bool | None = None) -> list[FileChunk]:
    """Return the file at a path, or the files that match a glob pattern, sorted by name; each as one chunk.

    Args:
        pattern: Path or pattern.
        encoding: Encoding of the files.
        delimiter: As in ``FileChunk``.
        quotes: As in ``FileChunk``; None for what the form has: yes in CSV, no in TSV.

    Raises:
        InputError: If there is no file, or the files have different formats.
    """
    paths = [Path(pattern)] if Path(pattern).is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
    forms = {path: _form_of(path, encoding) for path in paths if path.is_file()}
    if not forms:
        raise InputError("there is no such file", where=pattern, fix="give a file or a quoted pattern: 'in/*.jsonl'")
    if len(set(forms.values())) > 1:
        what = f"the files have several formats: {', '.join(sorted(set(forms.values())))}"
        raise InputError(what, where=pattern, fix="run one command for each format")
    if (delimiter or quotes is not None) and not set(forms.values()) <= {"csv", "tsv"}:
        raise InputError("--delimiter and --quotes are for CSV and TSV", where=pattern, fix="remove them")
    return [FileChunk(str(path.resolve()), form, encoding=encoding, delimiter=delimiter,
                      quotes=form == "csv" if quotes is None else quotes)
            for path, form in forms.items()]  # fmt: skip


def file_format(path: Path) -> str:
    """Return ``jsonl``, ``csv``, ``tsv`` or ``parquet`` by the ending of the name; raise InputError for another one."""
    if form := ENDINGS.get(path.suffix.lower()):
        return form
    fix = "use .jsonl, .csv, .tsv or .parquet"
    raise InputError(f"unknown file format {path.suffix!r}", where=str(path), fix=fix)


def _form_of(path: Path, encoding: str) -> str:
    """Return the form of a file with rows, see ``FileChunk``: by its name, and of JSON by its first character.

    Raises:
        InputError: If the name has another ending, or the file is compressed and cannot be decompressed.
    """
    form = file_format(path.with_suffix("") if path.suffix.lower() == GZIP_ENDING else path)
    if form != "jsonl":
        return form
    with _open_text(path, encoding) as file:
        first = file.read(_FIRST_BYTES)
    return _JSON_ARRAY if first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[" else form


def _open_text(path: Path, encoding: str) -> BinaryIO:
    """Open the text of a file in UTF-8. If it is compressed or in another encoding, the whole text is in memory."""
    with path.open("rb") as file:
        first = file.read(_FIRST_BYTES)
    if is_plain(first, encoding):
        return path.open("rb")
    state = path.stat()
    return io.BytesIO(_converted(path, encoding, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=1)  # every chunk of a file begins with its text
def _converted(path: Path, encoding: str, changed: int, size: int) -> bytes:
    return file_text(path, encoding).encode()


def read_chunk(chunk: FileChunk, columns: Sequence[str] | None = None) -> Iterator[ReadRow]:
    """Read the rows of a chunk.

    Args:
        chunk: The rows to read.
        columns: Columns to read from a Parquet file. None reads all; other formats always give all.

    Raises:
        InputError: If a row cannot be read.
    """
    readers = {
        "jsonl": _json_rows,
        "parquet": lambda chunk: _parquet_rows(chunk, columns),
        _JSON_ARRAY: _array_rows,
    }
    return islice(readers.get(chunk.form, _table_rows)(chunk), chunk.rows)


def decode_line(data: bytes, path: str, line: int) -> str:
    """Decode a line from UTF-8; raise InputError with its location if it is not UTF-8."""
    return decode_text(data, UTF_8, path, line, "name its encoding with --encoding, or convert it to UTF-8")


class _Lines:
    """Iterator over the lines of a file; ``offset`` and ``number`` are the bytes and lines read so far."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.file, self.path, self.offset, self.number = file, path, 0, 0
        self._pieces: deque[bytes] = deque()  # several where a carriage return ends a line

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if not self._pieces:
            self._pieces.extend(split_lines(self.file.readline()))
        if not self._pieces:
            raise StopIteration
        data = self._pieces.popleft()
        self.offset, self.number = self.offset + len(data), self.number + 1
        text = decode_line(data, self.path, self.number)
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def seek(self, chunk: FileChunk) -> None:
        self._pieces.clear()
        self.file.seek(chunk.offset)
        self.offset, self.number = chunk.offset, chunk.lines

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"


def _json_rows(chunk: FileChunk) -> Iterator[ReadRow]:
    with _open_text(Path(chunk.path), chunk.encoding) as file:
        lines = _Lines(file, chunk.path)
        lines.seek(chunk)
        for line in lines:
            if line.strip():
                yield ReadRow(json_row(line, lines.where), lines.where, lines.offset, lines.number)


def _array_rows(chunk: FileChunk) -> Iterator[ReadRow]:
    with _open_text(Path(chunk.path), chunk.encoding) as file:
        text = decode_line(file.read(), chunk.path, 1).removeprefix("\ufeff")
    for number, row in enumerate(json_array(text, chunk.path)[chunk.offset :], chunk.offset + 1):
        yield ReadRow(row, f"{chunk.path}, item {number}", number, number)


def _table_rows(chunk: FileChunk) -> Iterator[ReadRow]:
    delimiter = chunk.delimiter or ("," if chunk.form == "csv" else "\t")
    with _open_text(Path(chunk.path), chunk.encoding) as file:
        lines = _Lines(file, chunk.path)
        records = _records(table_reader(lines, delimiter, chunk.quotes), lines)
        first = next(records, None)
        if first is None:
            return
        header = TableHeader.of(*first)
        if chunk.offset:
            lines.seek(chunk)
        for cells, where in records:
            row = header.row(cells, where, "correct the row, or put quotes around its texts")
            yield ReadRow(row, where, lines.offset, lines.number)


def _records(reader: Iterator[list[str]], lines: _Lines) -> Iterator[tuple[list[str], str]]:
    """Yield the cells of every record that is not empty, and the location of its first line."""
    while True:
        where = f"{lines.path}:{lines.number + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fix = "correct the row: double the quotes inside a quoted text"
            raise InputError(f"the row cannot be read: {error}", where=where, fix=fix) from error
        if cells:
            yield cells, where


def _parquet_rows(chunk: FileChunk, columns: Sequence[str] | None) -> Iterator[ReadRow]:
    with open_parquet(chunk.path) as file:
        first, skip, number = 0, chunk.offset, chunk.offset
        while first < file.num_row_groups and skip >= (rows := file.metadata.row_group(first).num_rows):
            first, skip = first + 1, skip - rows
        groups = range(first, file.num_row_groups)
        for batch in file.iter_batches(_PARQUET_BATCH, row_groups=list(groups), columns=columns):
            for row in python_rows(batch.slice(min(skip, batch.num_rows)), chunk.path):
                number += 1
                yield ReadRow(row, f"{chunk.path}, row {number}", number, number)
            skip = max(skip - batch.num_rows, 0)
