"""Validation helpers of the config models: strict models, errors with a fix, and checked or normalised field types."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from workers.data.cells import NotTextError, cell_text

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
