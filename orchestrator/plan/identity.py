"""Identity: which settings and data decide a result, and the hash by which the result is found again.

- A **spec** is the JSON object of everything that decides a result: base, adapter, data, training settings, seed and a
  recipe number (``workers/recipes.py``). It is kept with the version, so that a plan can name what changed.
- A **spec hash** is the SHA-256 of a spec's canonical JSON. It identifies an expert, a router or a search, and decides
  whether it is skipped, resumed, registered or stale. Equal spec hashes mean equal settings and data.
- A **digest** is the SHA-256 of file contents: of the base's files, or of an expert's weights. It does not depend on
  settings or paths. The digest of the base is part of the spec; the digest of an expert verifies its files.
- A **fingerprint** is the digest of a task's prepared rows, label names and kind. It is part of the spec and does not
  depend on the source or the format from which the rows were read.
- A **cache key** names an entry of the cache (tokens, trunk states, router features). It contains only what decides the
  entry, so several experts share an entry although their specs differ.
- A **lock** maps each task to the spec hash of the expert that a router was trained for. It is part of the router's
  spec, so a changed expert makes the router stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from typing import Any

from pydantic import BaseModel


def spec_hash(spec: dict[str, Any]) -> str:
    """Return the SHA-256 of the spec's canonical JSON as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hashed_settings(settings: Any, exclude: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a settings model or dataclass that enter a spec.

    A field can be marked with a neutral value: the value at which the code behaves as it did before the field existed.
    Such a field enters only if it differs from the neutral value, so a new setting does not change the hash of earlier
    specs. Mark it with ``Field(json_schema_extra={"neutral": value})`` in a pydantic model, and with
    ``field(metadata={"neutral": value})`` in a dataclass.

    Args:
        settings: A pydantic model or a dataclass instance.
        exclude: Names of fields that do not change the result, such as those that only save memory.

    Returns:
        Values by field name, ready for JSON.
    """
    if isinstance(settings, BaseModel):
        return _without_neutral(settings, settings.model_dump(exclude=set(exclude)))
    values = {name: value for name, value in asdict(settings).items() if name not in exclude}
    marks = {field.name: field.metadata for field in fields(settings)}
    return {name: value for name, value in values.items() if not _is_neutral(marks[name], value)}


def _without_neutral(settings: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    """Return the dumped values without neutral ones, in nested models too."""
    hashed = {}
    for name, value in values.items():
        field_value = getattr(settings, name)
        if isinstance(field_value, BaseModel):
            hashed[name] = _without_neutral(field_value, value)
        elif not _is_neutral(type(settings).model_fields[name].json_schema_extra, field_value):
            hashed[name] = value
    return hashed


def _is_neutral(marks: Any, value: Any) -> bool:
    return isinstance(marks, Mapping) and "neutral" in marks and marks["neutral"] == value
