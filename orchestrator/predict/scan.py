"""The first pass over the files: is every row fit to be asked, how many are there, and what do the columns hold?

What is wrong is said before a model is loaded, and a long run does not end at its last row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.predict.input_columns import InputColumns, Row, output_names
from orchestrator.predict.readers import FileChunk, ReadRow, open_parquet, read_chunk
from ttmoe.errors import InputError

if TYPE_CHECKING:
    import pyarrow

CHUNK_ROWS = 256
"""Rows between two places at which a piece may begin."""


@dataclass(frozen=True)
class FileScan:
    """The files, in steps of some rows; the input columns' Arrow types; those whose values are written as JSON."""

    steps: tuple[FileChunk, ...]
    types: dict[str, pyarrow.DataType]
    nested: frozenset[str]

    @property
    def rows(self) -> int:
        """How many there are in all files."""
        return sum(step.rows or 0 for step in self.steps)

    def pieces(self, most: int) -> list[FileChunk]:
        """All rows, in order, in pieces of up to ``most`` rows (but whole steps)."""
        pieces: list[FileChunk] = []
        for step in self.steps:
            last = pieces[-1] if pieces else None
            if last and last.path == step.path and (rows := (last.rows or 0) + (step.rows or 0)) <= most:
                pieces[-1] = replace(last, rows=rows)
            else:
                pieces.append(step)
        return pieces


def scan_files(files: Sequence[FileChunk], columns: InputColumns) -> FileScan:
    """Read the files once. Raises InputError for the first row that cannot be asked, and where there is none."""
    kinds: dict[str, str] = {}
    schemas: list[pyarrow.Schema] = []
    steps: list[FileChunk] = []
    for file in files:
        only = None
        if file.form == "parquet":
            schemas.append(open_parquet(file.path).schema_arrow)
            columns.check(schemas[-1].names, file.path)
            only = [name for name in columns.looked_at if name in schemas[-1].names]
        steps += _steps(file, _checked(read_chunk(file, only), columns, None if only else kinds))
    if not steps:
        raise InputError("there is no row", where=files[0].path, fix="write some, a header first in a table")
    types = _unified(schemas, files) if schemas else {name: _arrow(kind) for name, kind in kinds.items()}
    where = files[0].path if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more"
    columns.check(types, where)
    output_names(types, where)
    return FileScan(tuple(steps), types, frozenset(name for name, kind in kinds.items() if kind == "json"))


def _checked(reads: Iterator[ReadRow], columns: InputColumns, kinds: dict[str, str] | None) -> Iterator[ReadRow]:
    for found in reads:
        columns.input_of(found.row, found.where)
        if kinds is not None:
            _note(found.row, kinds)
        yield found


def _steps(file: FileChunk, reads: Iterator[ReadRow]) -> Iterator[FileChunk]:
    step = replace(file, rows=0)
    for found in reads:
        step = replace(step, rows=(step.rows or 0) + 1)
        if step.rows == CHUNK_ROWS:
            yield step
            step = replace(file, offset=found.offset, lines=found.lines, rows=0)
    if step.rows:
        yield step


def _note(row: Row, kinds: dict[str, str]) -> None:
    """Widen what is known of the columns by one row's values."""
    for name, value in row.items():
        found, known = _kind(value), kinds.get(name, "null")
        if found != known:
            numbers = {found, known} == {"int", "float"}
            kinds[name] = (
                found if known == "null" else known if found == "null" else "float" if numbers else "json"
            )  # fmt: skip


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "strings" if all(isinstance(each, str) for each in value) else "json"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return "json"
    names = {"NoneType": "null", "str": "string", "bool": "bool", "int": "int", "float": "float"}
    return names.get(type(value).__name__, "json")


def _arrow(kind: str) -> pyarrow.DataType:
    import pyarrow

    plain = {"bool": pyarrow.bool_, "int": pyarrow.int64, "float": pyarrow.float64}
    return pyarrow.list_(pyarrow.string()) if kind == "strings" else plain.get(kind, pyarrow.string)()


def _unified(schemas: Sequence[pyarrow.Schema], files: Sequence[FileChunk]) -> dict[str, pyarrow.DataType]:
    import pyarrow

    try:
        schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
    except pyarrow.ArrowException as error:
        fix = "ask for the files one by one"
        raise InputError(f"their columns do not go together: {error}", where=files[0].path, fix=fix) from error
    return {field.name: field.type for field in schema}
