"""A row and its answer, side by side: as an object, and as a row of an Arrow table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.predicting.columns import Row
from ttmoe.errors import InputError

if TYPE_CHECKING:
    import pyarrow

    from orchestrator.predicting.survey import Survey
    from ttmoe.routed import Prediction

ANSWER = ("task", "label", "confidence", "routing", "scores")
"""The columns that an answer adds."""
_INPUT = "input_"


def kept_names(names: Iterable[str], where: str) -> dict[str, str]:
    """What the input's columns are called beside the answer: as they were, but ``label`` becomes ``input_label``.

    Raises InputError where that name is taken, too.
    """
    names = list(names)
    kept = {name: f"{_INPUT}{name}" if name in ANSWER else name for name in names}
    if clash := next((new for name, new in kept.items() if new != name and new in names), None):
        raise InputError(f"the answer needs the name of two columns, {clash.removeprefix(_INPUT)!r} and {clash!r}",
                         where=where, fix="rename one of them")  # fmt: skip
    return kept


def answered(row: Row, answer: Prediction, where: str = "") -> Row:
    """The row's own columns, then task, label, confidence, routing and scores."""
    kept = kept_names(row, where)
    return {kept[name]: value for name, value in row.items()} | {name: getattr(answer, name) for name in ANSWER}


def as_json(row: Row) -> str:
    """One line of JSON; numbers that JSON has no word for become null, dates and the like their text."""
    plain = {name: None if _endless(value) else value for name, value in row.items()}
    return json.dumps(plain, ensure_ascii=False, default=str)


def schema_of(survey: Survey) -> pyarrow.Schema:
    """The Arrow types of answered rows; ``scores`` is a map from label to probability."""
    import pyarrow

    kept = kept_names(survey.types, "")
    text, number = pyarrow.string(), pyarrow.float64()
    answer = (text, text, number, number, pyarrow.map_(text, number))
    fields = [(kept[name], type_) for name, type_ in survey.types.items()]
    return pyarrow.schema(fields + list(zip(ANSWER, answer, strict=True)))


def as_table(rows: Sequence[Row], schema: pyarrow.Schema, nested: frozenset[str]) -> pyarrow.Table:
    """Answered rows as a table; the columns ``nested``, by their names in the input, are written as JSON."""
    import pyarrow

    written = kept_names(nested, "").values()
    return pyarrow.Table.from_pylist([_arrow_row(row, set(written)) for row in rows], schema=schema)


def _arrow_row(row: Mapping[str, Any], written: set[str]) -> Row:
    plain = {name: _dumped(value) if name in written else value for name, value in row.items()}
    return plain | {"scores": list(row["scores"].items())}


def _dumped(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _endless(value: Any) -> bool:
    return isinstance(value, float) and value - value != 0  # nan, inf and -inf
