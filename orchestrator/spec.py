"""Identity: the hash of everything that decides what a piece of work gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from typing import Any

from pydantic import BaseModel

# Raised when the code would train differently from the same settings; the code's own version is recorded, not hashed.
EXPERT_RECIPE = 2
ROUTER_RECIPE = 3
SEARCH_RECIPE = 1


def spec_hash(spec: dict[str, Any]) -> str:
    """sha256 of the spec's canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hashed_settings(settings: Any, exclude: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a settings model or dataclass that enter a spec.

    A field marked with a neutral value, the value at which the code behaves as it did before the field existed, enters
    only where it differs from that value. So a new setting leaves the hash of every earlier spec as it was. Mark it with
    ``Field(json_schema_extra={"neutral": value})`` in a pydantic model, ``field(metadata={"neutral": value})`` in a
    dataclass.

    Args:
        settings: A pydantic model or a dataclass instance.
        exclude: Names of fields that decide nothing of the result, such as those that only save memory.

    Returns:
        Values by field name, ready for JSON.
    """
    if isinstance(settings, BaseModel):
        return _without_neutral(settings, settings.model_dump(exclude=set(exclude)))
    values = {name: value for name, value in asdict(settings).items() if name not in exclude}
    marks = {field.name: field.metadata for field in fields(settings)}
    return {name: value for name, value in values.items() if not _is_neutral(marks[name], value)}


def _without_neutral(settings: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        inner = getattr(settings, name)
        if isinstance(inner, BaseModel):
            kept[name] = _without_neutral(inner, value)
        elif not _is_neutral(type(settings).model_fields[name].json_schema_extra, inner):
            kept[name] = value
    return kept


def _is_neutral(marks: Any, value: Any) -> bool:
    return isinstance(marks, Mapping) and "neutral" in marks and marks["neutral"] == value
