"""The JSON that commands print: each number is rounded to what it means."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

_DURATIONS = ("seconds", "left")  # keys of seconds; those of metrics go on after a dot, as in seconds.job


def round_share(value: float) -> float:
    """Round a probability, an accuracy, a loss or a share to 4 decimals."""
    return round(value, 4) + 0.0  # 0.0, not -0.0


def round_numbers(value: Any, key: str = "", exact: Collection[str] = ()) -> Any:
    """Return a value of JSON with its numbers rounded: durations to 0.1 seconds, other fractions to 4 decimals.

    Whole numbers such as bytes and counts stay as they are. NaN and infinities become None.

    Args:
        value: A value of JSON, with mappings and lists inside.
        key: Its key, by which a duration is known.
        exact: Keys of values that are not rounded, such as settings, at any depth.
    """
    if key in exact:
        return finite(value)
    if isinstance(value, Mapping):
        return {name: round_numbers(inner, str(name), exact) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [round_numbers(inner, key, exact) for inner in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return round(value, 1) if key.partition(".")[0] in _DURATIONS else round_share(value)


def finite(value: Any) -> Any:
    """Return a value of JSON with None in place of NaN and infinities, which JSON does not have, at any depth."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(content: Mapping[str, Any], exact: Collection[str] = ()) -> str:
    """Return the JSON text of a command's output. Times become text in the form of ISO 8601.

    Args:
        content: The output.
        exact: Keys of values that are not rounded, such as settings, at any depth.
    """
    rounded = round_numbers(content, exact=exact)
    return json.dumps(rounded, indent=1, allow_nan=False, default=lambda value: value.isoformat())
