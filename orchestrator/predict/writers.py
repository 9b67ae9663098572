"""Where answered rows go: standard output, or a file that is whole or not there."""

from __future__ import annotations

import csv
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.predict.answers import answer_schema, to_json_line, to_table
from orchestrator.predict.input_columns import ANSWER, Row, output_names
from orchestrator.predict.readers import FileChunk, file_format
from orchestrator.predict.scan import FileScan
from ttmoe.errors import InputError

RowWriter = Callable[[Sequence[Row]], None]


def check_output(out: Path, files: Sequence[FileChunk], force: bool) -> None:
    """Raises InputError for a file that cannot be written, tells no format, is read, or is there and not ``force``."""
    file_format(out)
    if any(Path(file.path) == out.resolve() for file in files):
        raise InputError("the answers would replace the file that is read", where=str(out), fix="name another --out")
    if out.exists() and (out.is_dir() or not force):
        fix = "name another --out" if out.is_dir() else "name another --out, or replace it with --force"
        raise InputError("it is already there", where=str(out), fix=fix)
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        fix = "make the folder, or name another --out"
        raise InputError("its folder cannot be written to", where=str(out), fix=fix)


@contextmanager
def open_output(out: Path | None, survey: FileScan) -> Iterator[RowWriter]:
    """What takes answered rows. A file appears, or is replaced, when all of them were written."""
    if out is None:
        yield print_rows
        return
    part = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}")
    writers = {"jsonl": _json_lines, "parquet": _parquet}
    try:
        with writers.get(file_format(out), _table)(part, survey, file_format(out)) as write:
            yield write
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def print_rows(rows: Sequence[Row]) -> None:
    """Lines of JSON on standard output, at once."""
    sys.stdout.write("".join(f"{to_json_line(row)}\n" for row in rows))
    sys.stdout.flush()


@contextmanager
def _json_lines(part: Path, survey: FileScan, form: str) -> Iterator[RowWriter]:
    with part.open("w", encoding="utf-8", newline="") as file:
        yield lambda rows: file.writelines(f"{to_json_line(row)}\n" for row in rows)
        _to_disk(file)


@contextmanager
def _table(part: Path, survey: FileScan, form: str) -> Iterator[RowWriter]:
    names = [*output_names(survey.types, "").values(), *ANSWER]
    with part.open("w", encoding="utf-8", newline="") as file:
        cells = csv.DictWriter(file, names, delimiter="," if form == "csv" else "\t", lineterminator="\n")
        cells.writeheader()
        yield lambda rows: cells.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        _to_disk(file)


@contextmanager
def _parquet(part: Path, survey: FileScan, form: str) -> Iterator[RowWriter]:
    import pyarrow.parquet

    schema = answer_schema(survey)
    with part.open("wb") as file:
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
            yield lambda rows: writer.write_table(to_table(rows, schema, survey.nested))
        _to_disk(file)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else value


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
