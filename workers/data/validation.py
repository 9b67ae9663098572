"""Validation helpers of the config models: strict models, errors with a fix, and checked or normalised field types."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from workers.data.cells import NotTextError, cell_text

# What torch, Ray and MLflow take. A count is an int32, a seed an int64, a float a normal float32: with 1e39 or 1e-46, a
# training would compute with infinity or zero.
LARGEST_COUNT = 2**31 - 1
LARGEST_SEED = 2**63 - 1
_FLOAT32 = (1.2e-38, 3.4e38)

STRICT_CONFIG = ConfigDict(frozen=True, extra="forbid")


def setting_error(what: str, *, fix: str = "", key: tuple[str, ...] = ()) -> PydanticCustomError:
    """Return an error to raise in a validator; the config loader shows it as an InputError.

    Args:
        what: What is wrong.
        fix: What the user should do.
        key: Path from the validated value to the invalid one; empty if they are the same.
    """
    return PydanticCustomError("fault", "{what}", {"what": what, "fix": fix, "key": key})


def _check_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        what = f"{pattern!r} is not a regular expression: {error}"
        raise setting_error(what, fix="write it in the syntax of Python's `re` module") from error
    return pattern


def _check_digest(digest: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise setting_error("a sha256 has 64 hexadecimal digits (0-9, a-f)", fix="copy the output of `sha256sum FILE`")
    return digest


def _check_float32(value: float) -> float:
    smallest, largest = _FLOAT32
    if value and not smallest <= abs(value) <= largest:
        raise setting_error(f"{value} is no number of 32 bits", fix=f"write one between {smallest} and {largest}")
    return value


def _to_texts(values: Any) -> Any:
    return tuple(map(_config_text, values)) if isinstance(values, list | tuple) else values


def _to_text_mapping(names: Any) -> Any:
    if not isinstance(names, dict):
        return names
    texts: dict[str, str] = {}
    first: dict[str, Any] = {}
    for key, value in names.items():
        text = _config_text(key)
        if text in texts:
            raise setting_error(f"{first[text]!r} and {key!r} are one value", fix="keep one of them")
        texts[text], first[text] = _config_text(value), key
    return texts


def _config_text(value: Any) -> str:
    try:
        return cell_text(value)
    except NotTextError as error:
        raise setting_error(f"{error} is not a value to compare with", fix="write a text, a number or true") from error


PositiveInt = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_check_float32)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_check_float32)]
Regex = Annotated[str, AfterValidator(_check_regex)]
Sha256 = Annotated[str, AfterValidator(_check_digest)]

# Values as YAML reads them; the JSON Schema of a config shows the types before the conversion to text.
_Value = str | float | bool | None
_Values = Annotated[tuple[_Value, ...], Field(min_length=1)]
_ValueMapping = Annotated[dict[str, _Value], Field(min_length=1)]
Texts = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_to_texts, json_schema_input_type=_Values)]
TextMapping = Annotated[
    dict[str, str], Field(min_length=1), BeforeValidator(_to_text_mapping, json_schema_input_type=_ValueMapping)
]
