"""A row and its answer, side by side: as an object, and as a row of an Arrow table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.predict.input_columns import ANSWER, Row, output_names

if TYPE_CHECKING:
    import pyarrow

    from orchestrator.predict.scan import FileScan
    from ttmoe.routed import Prediction


def with_answer(row: Row, answer: Prediction, where: str = "") -> Row:
    """The row's own columns, then task, label, confidence, routing and scores."""
    kept = output_names(row, where)
    return {kept[name]: value for name, value in row.items()} | {name: getattr(answer, name) for name in ANSWER}


def to_json_line(row: Row) -> str:
    """One line of JSON; numbers that JSON has no word for become null, dates and the like their text."""
    plain = {name: None if _endless(value) else value for name, value in row.items()}
    return json.dumps(plain, ensure_ascii=False, default=str)


def answer_schema(survey: FileScan) -> pyarrow.Schema:
    """The Arrow types of answered rows; ``scores`` is a map from label to probability."""
    import pyarrow

    kept = output_names(survey.types, "")
    text, number = pyarrow.string(), pyarrow.float64()
    answer = (text, text, number, number, pyarrow.map_(text, number))
    fields = [(kept[name], type_) for name, type_ in survey.types.items()]
    return pyarrow.schema(fields + list(zip(ANSWER, answer, strict=True)))


def to_table(rows: Sequence[Row], schema: pyarrow.Schema, nested: frozenset[str]) -> pyarrow.Table:
    """Answered rows as a table; the columns ``nested``, by their names in the input, are written as JSON."""
    import pyarrow

    written = output_names(nested, "").values()
    return pyarrow.Table.from_pylist([_arrow_row(row, set(written)) for row in rows], schema=schema)


def _arrow_row(row: Mapping[str, Any], written: set[str]) -> Row:
    plain = {name: _dumped(value) if name in written else value for name, value in row.items()}
    return plain | {"scores": list(row["scores"].items())}


def _dumped(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _endless(value: Any) -> bool:
    return isinstance(value, float) and value - value != 0  # nan, inf and -inf
