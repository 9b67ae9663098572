"""Config models for the columns of a task: input, label, row filters and groups.

A column name may be a dotted path into nested rows, such as ``input.-1.content``; ``workers.data.rows`` resolves it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workers.data.validation import STRICT_CONFIG, Regex, TextMapping, Texts, setting_error

Bounds = tuple[float | None, float | None]


class TextColumns(BaseModel):
    """The input columns of a task with one text."""

    model_config = STRICT_CONFIG
    text: str = Field(description="Column of the text.")


class PairColumns(BaseModel):
    """The input columns of a task with a pair of texts."""

    model_config = STRICT_CONFIG
    first: str = Field(description="Column of the first text, such as a premise.")
    second: str = Field(description="Column of the second text, such as a hypothesis.")


class ChoiceColumns(BaseModel):
    """The input columns of a multiple-choice task."""

    model_config = STRICT_CONFIG
    text: str = Field(description="Column of the question.")
    choices: str | tuple[str, ...] = Field(description="A column that contains lists, or one column per option.")


class GenerateColumns(BaseModel):
    """The columns of a task that generates text."""

    model_config = STRICT_CONFIG
    prompt: str = Field(description="Column of the prompt.")
    answer: str = Field(description="Column of the text to generate.")


class PromptColumns(BaseModel):
    """The input column of a task that generates text, in rows without answers."""

    model_config = STRICT_CONFIG
    prompt: str = Field(description="Column of the prompt.")


class ChatColumns(BaseModel):
    """The column of a task that continues conversations."""

    model_config = STRICT_CONFIG
    messages: str = Field(
        description="Column of the conversations: lists of {role, content} with the role system, user or assistant, or "
        "of {from, value} with system, human or gpt; in CSV and TSV their JSON text."
    )


class LabelColumn(BaseModel):
    """The label column and the mapping of its values to label names.

    Without ``names`` and ``ranges``, the sorted distinct values are the label names. Which cells meet which values of
    ``names``, and of a filter's ``in`` and ``not_in``:

    | the column | the cells | are the same value as, in a config |
    | --- | --- | --- |
    | typed (JSON, Parquet, hub), all booleans | `true` | `true`, `True`, `"true"` |
    | typed, all numbers | `1`, `1.0` | `1`, `1.0`, `"1"` |
    | without types (CSV, TSV, pattern), all read as booleans | `True`, `true`, `FALSE` | `true`, `True`, `"True"` |
    | without types, all read as numbers | `1`, `1.0`, `0.00`, `1e3` | `1`, `1.0`, `"1.00"` |
    | any other | `01` and `1`; `yes`; `True` beside `maybe` | the same text, without white space at its ends |
    """

    model_config = STRICT_CONFIG
    column: str = Field(description="Column of the label; in a choice task, the index of the right option, from 0.")
    names: TextMapping | None = Field(
        default=None, description="Label name for each raw value, in the order of the labels."
    )
    ranges: Annotated[dict[str, Bounds], Field(min_length=2)] | None = Field(
        default=None, description="Open interval [above, below] for each label; rows in no interval are left out."
    )

    @model_validator(mode="after")
    def _check(self) -> LabelColumn:
        if self.names is not None and self.ranges is not None:
            raise setting_error("names and ranges cannot be combined", fix="keep one of them")
        inf = float("inf")
        intervals = sorted(
            (-inf if low is None else low, inf if high is None else high, name)
            for name, (low, high) in (self.ranges or {}).items()
        )
        for low, high, name in intervals:
            if not low < high:
                raise setting_error("the range is empty", key=("ranges", name), fix="write [above, below]")
        for (_, end, name), (start, _, next_name) in pairwise(intervals):
            if start < end:
                raise setting_error(f"the range overlaps that of {name}", key=("ranges", next_name), fix="move a bound")
        return self


class RowFilter(BaseModel):
    """A filter on one column: ``in``, ``not_in``, ``above`` and/or ``below``, or ``matches``."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)
    column: str = Field(description="Column that is tested.")
    one_of: Texts | None = Field(default=None, alias="in", description="Keep rows with these values.")
    not_in: Texts | None = Field(default=None, description="Leave out rows with these values.")
    above: float | None = Field(default=None, description="Keep rows with a number above this.")
    below: float | None = Field(default=None, description="Keep rows with a number below this.")
    matches: Regex | None = Field(
        default=None, description="Keep rows whose value contains a match of this regular expression."
    )

    @model_validator(mode="after")
    def _check(self) -> RowFilter:
        ranged = self.above is not None or self.below is not None
        if ranged + sum(value is not None for value in (self.one_of, self.not_in, self.matches)) != 1:
            fix = "give in, not_in, above and/or below, or matches"
            raise setting_error("a filter needs exactly one condition", fix=fix)
        return self


class GroupColumn(BaseModel):
    """The column that groups rows; all rows of a group are put in the same split."""

    model_config = STRICT_CONFIG
    column: str = Field(description="Column that identifies the group.")
    pattern: Regex | None = Field(
        default=None, description="Regular expression for the part to use: its group 1, or else the whole match."
    )
