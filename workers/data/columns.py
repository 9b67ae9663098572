"""What a config says about columns: the input, the label, which rows count and which belong together.

A dotted column reference (``input.-1.content``) walks into nested rows; ``workers.data.examples`` resolves it.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

STRICT_CONFIG = ConfigDict(frozen=True, extra="forbid")


def cell_text(value: Any) -> str:
    """The spelling by which values of configs and data are compared: 1, 1.0 and " 1 " are all "1"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None or value != value else str(value).strip()


def setting_error(what: str, *, fix: str = "", key: tuple[str, ...] = ()) -> PydanticCustomError:
    """An error as the config reader shows it; ``key`` leads from the validated value to the culprit."""
    return PydanticCustomError("fault", "{what}", {"what": what, "fix": fix, "key": key})


def _check_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise setting_error(f"{pattern!r} is no regular expression: {error}", fix="see Python's `re`") from error
    return pattern


def _texts(values: Any) -> Any:
    return tuple(cell_text(value) for value in values) if isinstance(values, list | tuple) else values


def _text_to_text(names: Any) -> Any:
    return {cell_text(k): cell_text(v) for k, v in names.items()} if isinstance(names, dict) else names


Regex = Annotated[str, AfterValidator(_check_regex)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts), Field(min_length=1)]
Bounds = tuple[float | None, float | None]


class TextColumns(BaseModel):
    """The columns of a task on one text."""

    model_config = STRICT_CONFIG
    text: str = Field(description="The text.")


class PairColumns(BaseModel):
    """The columns of a task on a pair of texts."""

    model_config = STRICT_CONFIG
    first: str = Field(description="The first text, such as a premise.")
    second: str = Field(description="The second text, such as a hypothesis.")


class ChoiceColumns(BaseModel):
    """The columns of a multiple-choice task."""

    model_config = STRICT_CONFIG
    text: str = Field(description="The question.")
    choices: str | tuple[str, ...] = Field(description="A column that holds a list, or a column for each option.")


class GenerateColumns(BaseModel):
    """The columns of a task whose answers are written."""

    model_config = STRICT_CONFIG
    prompt: str = Field(description="The text that is answered.")
    answer: str = Field(description="The text that is to be written; it has no label.")


class LabelColumn(BaseModel):
    """The label's column and what its values mean; without a mapping the sorted distinct values are names."""

    model_config = STRICT_CONFIG
    column: str = Field(description="The label; in a choice task, the right option's index, counted from 0.")
    names: Annotated[dict[str, str], BeforeValidator(_text_to_text), Field(min_length=1)] | None = Field(
        default=None, description="Label name for each raw value, in the labels' order."
    )
    ranges: Annotated[dict[str, Bounds], Field(min_length=2)] | None = Field(
        default=None, description="For each label an open interval [above, below]; rows in none are left out."
    )

    @model_validator(mode="after")
    def _check(self) -> LabelColumn:
        if self.names is not None and self.ranges is not None:
            raise setting_error("names and ranges are two mappings", fix="keep one of them")
        inf = float("inf")
        spans = sorted(
            (-inf if low is None else low, inf if high is None else high, name)
            for name, (low, high) in (self.ranges or {}).items()
        )
        for low, high, name in spans:
            if not low < high:
                raise setting_error("the range is empty", key=("ranges", name), fix="write [above, below]")
        for (_, end, name), (start, _, other) in pairwise(spans):
            if start < end:
                raise setting_error(f"the range overlaps that of {name}", key=("ranges", other), fix="move one bound")
        return self


class RowFilter(BaseModel):
    """Keeps the rows whose column is ``in`` or ``not_in`` a list, between two numbers, or ``matches``."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)
    column: str = Field(description="The column that is looked at.")
    one_of: Texts | None = Field(default=None, alias="in", description="Keep these values.")
    not_in: Texts | None = Field(default=None, description="Leave these values out.")
    above: float | None = Field(default=None, description="Keep numbers above this.")
    below: float | None = Field(default=None, description="Keep numbers below this.")
    matches: Regex | None = Field(default=None, description="Keep values in which this regular expression is found.")

    @model_validator(mode="after")
    def _check(self) -> RowFilter:
        ranged = self.above is not None or self.below is not None
        if ranged + sum(value is not None for value in (self.one_of, self.not_in, self.matches)) != 1:
            raise setting_error(
                "a filter asks one thing of its column", fix="give in, not_in, above and/or below, or matches"
            )
        return self


class GroupColumn(BaseModel):
    """Rows that belong together and stay in one split."""

    model_config = STRICT_CONFIG
    column: str = Field(description="The column that tells the group.")
    pattern: Regex | None = Field(default=None, description="The part that counts: group 1, or the whole match.")
