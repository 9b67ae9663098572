"""Validation helpers of the config models: strict models, errors with a fix, and checked or normalised field types."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

STRICT_CONFIG = ConfigDict(frozen=True, extra="forbid")


def setting_error(what: str, *, fix: str = "", key: tuple[str, ...] = ()) -> PydanticCustomError:
    """Return an error to raise in a validator; the config loader shows it as an InputError.

    Args:
        what: What is wrong.
        fix: What the user should do.
        key: Path from the validated value to the invalid one; empty if they are the same.
    """
    return PydanticCustomError("fault", "{what}", {"what": what, "fix": fix, "key": key})


def cell_text(value: Any) -> str:
    """Return the text by which values of configs and data are compared: 1, 1.0 and " 1 " all become "1".

    None and NaN become "", booleans "true" and "false".
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None or value != value else str(value).strip()


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


def _to_texts(values: Any) -> Any:
    return tuple(cell_text(value) for value in values) if isinstance(values, list | tuple) else values


def _to_text_mapping(names: Any) -> Any:
    return {cell_text(key): cell_text(value) for key, value in names.items()} if isinstance(names, dict) else names


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
