"""Identity: what makes two pieces of work the same.

- A **spec** is the JSON object of everything that decides a result: base, adapter, data, training settings, seed and a
  recipe number (``workers/recipes.py``). Its **spec hash**, the sha256 of its canonical JSON, identifies an expert, a
  router or a search: it decides what is skipped, resumed, registered and stale.
- A **digest** is the sha256 of files: of the base, of an expert's weights.
- A **fingerprint** is the digest of a task's prepared rows, label names and kind, wherever they were read from.
- A **cache key** names an entry of the cache (tokens, trunk states, router features) by what decides its content.
- A **lock** maps each task to the spec hash of the expert that a router was trained for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from typing import Any

from pydantic import BaseModel


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
