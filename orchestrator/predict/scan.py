"""Scan the input files once: check every row, count the rows, and find the types of the columns.

Errors are thereby reported before a model is loaded, and a long command does not fail at its last row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.predict.input_columns import InputColumns, Row, output_names
from orchestrator.predict.readers import FileChunk, read_chunk
from ttmoe.errors import InputError
from workers.data.parquet_files import check_repeated, open_parquet
from workers.data.prepared import NO_ROWS_FIX
from workers.data.rows import outer_column

if TYPE_CHECKING:
    import pyarrow

CHUNK_ROWS = 256
"""Rows of the smallest chunks; the last chunk of a file may have fewer."""


@dataclass(frozen=True)
class FileScan:
    """The result of a scan.

    Attributes:
        chunks: All rows of the files in order, in chunks of ``CHUNK_ROWS`` rows.
        types: Arrow type of each input column.
        nested: Columns to write as JSON text in an Arrow table, because their values have no common type.
    """

    chunks: tuple[FileChunk, ...]
    types: dict[str, pyarrow.DataType]
    nested: frozenset[str]

    @property
    def rows(self) -> int:
        """Number of rows in all files."""
        return sum(chunk.rows or 0 for chunk in self.chunks)

    def merge_chunks(self, max_rows: int) -> list[FileChunk]:
        """Return all rows in order, in chunks of at most ``max_rows`` rows; chunks of the scan are not divided."""
        merged: list[FileChunk] = []
        for chunk in self.chunks:
            last = merged[-1] if merged else None
            if last and last.path == chunk.path and (rows := (last.rows or 0) + (chunk.rows or 0)) <= max_rows:
                merged[-1] = replace(last, rows=rows)
            else:
                merged.append(chunk)
        return merged


def scan_files(files: Sequence[FileChunk], columns: InputColumns) -> FileScan:
    """Read the files once and return their chunks and types.

    Args:
        files: Files of one format, from ``find_files``.
        columns: The input columns.

    Raises:
        InputError: If a row cannot be answered, a column is missing, or there are no rows.
    """
    kinds: dict[str, str] = {}
    schemas: list[pyarrow.Schema] = []
    chunks: list[FileChunk] = []
    for file in files:
        names = None
        if file.form == "parquet":
            with open_parquet(file.path) as parquet:
                schemas.append(parquet.schema_arrow)
            check_repeated(schemas[-1].names, schemas[-1].names, file.path)  # answers stand beside all columns
            columns.check(schemas[-1].names, file.path)
            outer = dict.fromkeys(outer_column(name, schemas[-1].names) for name in columns.names)
            names = [name for name in outer if name in schemas[-1].names]
        chunks += _scan_file(file, columns, names, kinds)
    if not chunks:
        raise InputError("there are no rows", where=files[0].path, fix=NO_ROWS_FIX)
    types = _unified_types(schemas, files) if schemas else {name: _arrow_type(kind) for name, kind in kinds.items()}
    where = files[0].path if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more"
    columns.check(types, where)
    output_names(types, where)
    return FileScan(tuple(chunks), types, frozenset(name for name, kind in kinds.items() if kind == "json"))


def _scan_file(
    file: FileChunk, columns: InputColumns, names: list[str] | None, kinds: dict[str, str]
) -> Iterator[FileChunk]:
    """Yield the chunks of a file; check each row, and unless the schema is known update ``kinds``."""
    start, rows = file, 0
    for read in read_chunk(file, names):
        columns.input_of(read.row, read.where)
        if names is None:
            _update_kinds(kinds, read.row)
        rows += 1
        if rows == CHUNK_ROWS:
            yield replace(start, rows=rows)
            start, rows = replace(file, offset=read.offset, lines=read.lines), 0
    if rows:
        yield replace(start, rows=rows)


def _update_kinds(kinds: dict[str, str], row: Row) -> None:
    """Widen the kind of each column to include the value of this row."""
    for name, value in row.items():
        kind, known = _kind(value), kinds.get(name, "null")
        if "null" in (kind, known):
            kinds[name] = known if kind == "null" else kind
        elif kind != known:
            kinds[name] = "float" if {kind, known} == {"int", "float"} else "json"


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "strings" if all(isinstance(item, str) for item in value) else "json"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return "json"
    names = {"NoneType": "null", "str": "string", "bool": "bool", "int": "int", "float": "float"}
    return names.get(type(value).__name__, "json")


def _arrow_type(kind: str) -> pyarrow.DataType:
    import pyarrow

    types = {"bool": pyarrow.bool_, "int": pyarrow.int64, "float": pyarrow.float64}
    return pyarrow.list_(pyarrow.string()) if kind == "strings" else types.get(kind, pyarrow.string)()


def _unified_types(schemas: Sequence[pyarrow.Schema], files: Sequence[FileChunk]) -> dict[str, pyarrow.DataType]:
    import pyarrow

    try:
        schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
    except pyarrow.ArrowException as error:
        what = f"the files have different column types: {error}"
        raise InputError(what, where=files[0].path, fix="run one command for each file") from error
    return {field.name: field.type for field in schema}
