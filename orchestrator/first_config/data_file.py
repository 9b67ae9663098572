"""Read a data file of which only the path is known: find its format, delimiter, quotes and encoding."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.first_config.line_patterns import find_line_pattern
from ttmoe.errors import InputError
from workers.data.rows import Row
from workers.data.sources import ENDINGS, format_ending, read_rows
from workers.data.tables import table_reader
from workers.data.task import Source
from workers.data.text_files import decompressed, detected_encoding

_DELIMITERS = {"csv": (",", ";", "\t", "|"), "tsv": ("\t", ";", ",", "|")}
_TESTED_RECORDS = 50
_ENCODINGS = ("utf-8", "cp1252", "latin-1")
_FORMATS = "JSONL, CSV, TSV and Parquet files, and text files with one row on a line"
_REFUSED = {
    (".xlsx", ".xls", ".ods"): "save the sheet as CSV: in Excel as `CSV UTF-8`, in LibreOffice as `Text CSV`",
    (".zip", ".tar", ".tgz", ".7z", ".bz2", ".xz"): "unpack it, then name the files in it",
    (".pdf", ".docx", ".doc", ".html", ".xml"): "write its texts to a JSONL or CSV file, one row for each text",
}


@dataclass(frozen=True)
class DataFile:
    """A data file and how it is read.

    Attributes:
        path: Its absolute path.
        settings: The settings of its source beside ``path``; only those that are not the default.
        rows: All its rows.
        notes: What was seen while it was read, as sentences.
    """

    path: Path
    settings: dict[str, Any]
    rows: list[Row]
    notes: tuple[str, ...] = ()


def read_data_file(path: Path) -> DataFile:
    """Read all rows of a file.

    Raises:
        InputError: If it does not exist, has no rows, or its format is not known.
    """
    _check_path(path)
    notes: list[str] = []
    settings = _find_settings(path, notes)
    rows = _read(path, settings, notes)
    if not rows:
        raise InputError("the file has no rows", where=str(path), fix="give a file with rows")
    if "pattern" not in settings:
        _check_names(path, rows)
    return DataFile(path.resolve(), settings, rows, tuple(notes))


def _check_path(path: Path) -> None:
    if path.is_dir():
        inside = sorted(each.name for each in path.iterdir() if each.is_file() and format_ending(each) in ENDINGS)
        fix = f"name the files in it, such as {path / inside[0]}" if inside else f"it reads {_FORMATS}"
        raise InputError("this is a folder, not a data file", where=str(path), fix=fix)
    if not path.is_file():
        raise InputError("the file does not exist", where=str(path), fix=f"check the path; it reads {_FORMATS}")
    for endings, fix in _REFUSED.items():
        if path.suffix.lower() in endings:
            raise InputError(f"files of the type {path.suffix} are not read", where=str(path), fix=fix)


def _find_settings(path: Path, notes: list[str]) -> dict[str, Any]:
    file_format = ENDINGS.get(format_ending(path))
    if file_format == "parquet":
        return {}
    text, settings = _decode(path, notes)
    if file_format is None:
        return settings | _find_unnamed_format(path, text, notes)
    if file_format != "jsonl":
        delimiter = _find_delimiter(text, file_format)
        if delimiter != _DELIMITERS[file_format][0]:
            settings["delimiter"] = delimiter
            notes.append(f"cells are separated by {delimiter!r}")
        if file_format == "tsv" and _quotes_enclose_cells(text, delimiter):
            settings["quotes"] = True
            notes.append("quotes enclose cells")
    return settings


def _decode(path: Path, notes: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the text of a file, and its encoding as a setting if it is not the default."""
    data = decompressed(path)
    if (encoding := detected_encoding(data)) != _ENCODINGS[0]:  # the reader detects it too
        return data.decode(encoding, errors="replace").removeprefix("\ufeff"), {}
    if b"\0" in data[:1000]:
        raise InputError("this is not a text file", where=str(path), fix=f"it reads {_FORMATS}")
    for encoding in _ENCODINGS:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "utf-8":
            return text.removeprefix("\ufeff"), {}
        notes.append(f"the file is not UTF-8; it is read as {encoding}: check letters such as é and ü in the rows")
        return text, {"encoding": encoding}
    raise AssertionError("latin-1 decodes everything")


def _find_delimiter(text: str, file_format: str) -> str:
    """Return what separates the cells: the format's own delimiter, unless the header has only one cell by it."""
    for delimiter in _DELIMITERS[file_format]:
        try:
            reader = table_reader(io.StringIO(text, newline=""), delimiter, file_format == "csv")
            widths = [len(record) for record in islice(reader, _TESTED_RECORDS) if record]
        except csv.Error:
            continue
        if widths and widths[0] > 1 and widths.count(widths[0]) >= 0.9 * len(widths):
            return delimiter
    return _DELIMITERS[file_format][0]


def _quotes_enclose_cells(text: str, delimiter: str) -> bool:
    """Return whether the quotes of a table enclose cells: with them it is a table, and another one than without."""
    if '"' not in text:
        return False
    try:
        records = [record for record in table_reader(io.StringIO(text, newline=""), delimiter, True) if record]
    except csv.Error:
        return False
    plain = [record for record in table_reader(io.StringIO(text, newline=""), delimiter, False) if record]
    return len({len(record) for record in records}) == 1 and records != plain


def _find_unnamed_format(path: Path, text: str, notes: list[str]) -> dict[str, Any]:
    """Return the format of a file whose ending says nothing, by its first lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError("the file has no rows", where=str(path), fix="give a file with rows")
    if re.match(r"\s*\[\s*\{", text) or _is_json_object(lines[0]):
        return {"format": "jsonl"}
    if found := find_line_pattern(lines):
        pattern, matching, what = found
        notes.append(f"{matching:,} of {len(lines):,} lines are {what}; the other lines are not read")
        return {"pattern": pattern}
    for delimiter in _DELIMITERS["tsv"]:
        if delimiter in lines[0] and _find_delimiter(text, "tsv" if delimiter == "\t" else "csv") == delimiter:
            return {"format": "tsv"} if delimiter == "\t" else {"format": "csv", "delimiter": delimiter}
    what = f"the lines have no form that is known here; the first is {lines[0][:80]!r}"
    fix = (
        "write a config with `ttmoe init`, and in it a `source` with a `pattern`, a regular expression with a named "
        r"group for each column: {path: app.log, pattern: '^\S+ (?P<level>[A-Z]+) (?P<text>.+)$'}; or give a JSONL or "
        "CSV file"
    )
    raise InputError(what, where=str(path), fix=fix)


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _read(path: Path, settings: dict[str, Any], notes: list[str]) -> list[Row]:
    """Read the rows; where quotes make a table unreadable, add the setting that reads it."""
    try:
        return read_rows(Source(path=str(path), **settings), Path())
    except InputError as error:
        if format_ending(path) not in (".csv", ".tsv", ".tab"):
            raise
        settings["quotes"] = quotes = format_ending(path) != ".csv"  # the opposite of the default
        try:
            rows = read_rows(Source(path=str(path), **settings), Path())
        except InputError:
            raise error from None
    notes.append(
        "quotes enclose cells" if quotes else "quotes are plain characters, because not all of them are paired"
    )
    return rows


def _check_names(path: Path, rows: list[Row]) -> None:
    """Refuse a table whose first line is a row."""
    if format_ending(path) not in (".csv", ".tsv", ".tab", ".txt"):
        return
    names = list(rows[0])
    data = [name for name in names if _is_number(name) or len(name) > 80]
    if data and not all(name.isdecimal() and int(name) == i for i, name in enumerate(names)):
        what = f"the first line is taken for the names of the columns, but {data[0][:40]!r} looks like a value"
        raise InputError(what, where=f"{path}:1", fix="write a first line with names, such as text,label")


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
