"""Add answers to rows, and write the rows to standard output or to a JSON Lines, CSV, TSV or Parquet file."""

from __future__ import annotations

import csv
import glob
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.plan.json_output import finite, round_share
from orchestrator.predict.input_columns import ANSWER, Row, output_names
from orchestrator.predict.leftovers import files_of_ended_runs, remove_files, run_name
from orchestrator.predict.readers import FileChunk, file_format
from orchestrator.predict.scan import FileScan
from ttmoe.atomic_write import name_full_disk
from ttmoe.errors import InputError, WorkFailedError

if TYPE_CHECKING:
    import pyarrow

    from ttmoe.prediction import Prediction

RowWriter = Callable[[Sequence[Row]], None]


def with_answer(row: Row, answer: Prediction) -> Row:
    """Return the row's columns under their output names, followed by task, label, confidence, routing and scores.

    Probabilities are rounded here, so they are the same numbers in every output.
    """
    names = output_names(row, "")
    return {names[name]: value for name, value in row.items()} | {
        "task": answer.task,
        "label": answer.label,
        "confidence": round_share(answer.confidence),
        "routing": round_share(answer.routing),
        "scores": {label: round_share(probability) for label, probability in answer.scores.items()},
    }


def check_output(out: Path, files: Sequence[FileChunk], force: bool) -> None:
    """Check that the answers can be written to ``out``.

    Raises:
        InputError: If the name has no known ending, the file is one of the input ``files``, exists and ``force`` is
            False, or its folder is not writable.
    """
    file_format(out)
    if any(Path(file.path) == out.resolve() for file in files):
        raise InputError("the answers would replace an input file", where=str(out), fix="choose another --out")
    if out.is_dir():
        raise InputError("it is a folder", where=str(out), fix="choose another --out")
    if out.exists() and not force:
        raise InputError("the file already exists", where=str(out), fix="choose another --out, or replace it: --force")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        fix = "create the folder, or choose another --out"
        raise InputError("its folder does not exist or is not writable", where=str(out), fix=fix)


@contextmanager
def open_output(out: Path | None, scan: FileScan) -> Iterator[RowWriter]:
    """Open the output and yield a function that writes answered rows.

    The rows go to a temporary file that replaces ``out`` when all were written, so ``out`` is never incomplete. Those
    of commands that were killed are removed first.

    Args:
        out: The file to write. None prints lines of JSON.
        scan: Columns and types of the input.

    Raises:
        WorkFailedError: If ``out`` cannot be replaced, such as a file that is a mount point. The answers are then kept
            beside it, in a file that no command removes.
    """
    if out is None:
        yield print_rows
        return
    part, form = out.with_name(f".{out.name}.{run_name()}"), file_format(out)
    for paths in files_of_ended_runs(out.parent.glob(f"{glob.escape(f'.{out.name}.')}*")).values():
        remove_files(paths)
    try:
        with name_full_disk(out), part.open("w", encoding="utf-8", newline="") as file:
            if form == "parquet":
                import pyarrow.parquet

                schema = answer_schema(scan)
                with pyarrow.parquet.ParquetWriter(file.buffer, schema) as parquet:
                    yield lambda rows: parquet.write_table(to_table(rows, schema, scan.nested))
            elif form == "jsonl":
                yield lambda rows: file.writelines(f"{to_json_line(row)}\n" for row in rows)
            else:
                names = [*output_names(scan.types, "").values(), *ANSWER]
                table = csv.DictWriter(file, names, delimiter="," if form == "csv" else "\t", lineterminator="\n")
                table.writeheader()
                yield lambda rows: table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    try:
        part.replace(out)
    except OSError as error:
        with suppress(OSError):
            part = part.rename(out.with_name(f"{out.stem}-{secrets.token_hex(4)}{out.suffix}"))
        fix = f"the answers are complete in {part}; move them"
        raise WorkFailedError(f"the file cannot be replaced: {error.strerror}", where=str(out), fix=fix) from error


def print_rows(rows: Sequence[Row]) -> None:
    """Print rows as lines of JSON to standard output, and flush it."""
    sys.stdout.write("".join(f"{to_json_line(row)}\n" for row in rows))
    sys.stdout.flush()


def to_json_line(row: Row) -> str:
    """Return a row as one line of JSON. NaN and infinities become null; dates and similar values become text."""
    return json.dumps(finite(row), ensure_ascii=False, default=_written, allow_nan=False)


def _written(value: Any) -> str:
    """Return the text of a value that JSON does not have, such as a date; bytes that are not UTF-8 become escapes."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def answer_schema(scan: FileScan) -> pyarrow.Schema:
    """Return the Arrow schema of answered rows; ``scores`` is a map from label to probability."""
    import pyarrow

    names = output_names(scan.types, "")
    text, number = pyarrow.string(), pyarrow.float64()
    answer = (text, text, number, number, pyarrow.map_(text, number))
    fields = [(names[name], type_) for name, type_ in scan.types.items()]
    return pyarrow.schema(fields + list(zip(ANSWER, answer, strict=True)))


def to_table(rows: Sequence[Row], schema: pyarrow.Schema, nested: frozenset[str]) -> pyarrow.Table:
    """Return answered rows as an Arrow table.

    Args:
        rows: Rows from ``with_answer``.
        schema: Schema from ``answer_schema``.
        nested: Input columns to write as JSON text, under their input names (``FileScan.nested``).
    """
    import pyarrow

    names = set(output_names(nested, "").values())
    values = [
        {name: _to_json(value) if name in names else value for name, value in row.items()}
        | {"scores": list(row["scores"].items())}
        for row in rows
    ]
    return pyarrow.Table.from_pylist(values, schema=schema)


def _to_json(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(finite(value), ensure_ascii=False)


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(finite(value), ensure_ascii=False, default=_written)
    return _written(value) if isinstance(value, bytes) else value
