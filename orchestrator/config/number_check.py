"""Booleans are no numbers: pydantic reads ``true`` as 1 where a setting is a number, and this refuses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


def require_numbers(data: Any, model: BaseModel) -> None:
    """Check that no boolean was read as a number.

    Args:
        data: What was validated.
        model: The model that it gave.

    Raises:
        ValidationError: If a boolean stands where a number belongs.
    """
    errors = [
        InitErrorDetails(
            type=PydanticCustomError("fault", "{what}", {"what": f"a number is needed, not {str(value).lower()}",
                                                         "fix": "write a number", "key": ()}),
            loc=place,
            input=value,
        )
        for place, value in _read_as_numbers(data, model, ())
    ]  # fmt: skip
    if errors:
        raise ValidationError.from_exception_data(type(model).__name__, errors)


def _read_as_numbers(
    data: Any, read: Any, place: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], bool]]:
    """Yield the place and value of each boolean that was read as a number."""
    if isinstance(data, bool):
        if isinstance(read, int | float) and not isinstance(read, bool):
            yield place, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _read_as_numbers(value, _part(read, key), (*place, key))
    elif isinstance(data, list | tuple) and isinstance(read, list | tuple) and len(data) == len(read):
        for index, (value, inner) in enumerate(zip(data, read, strict=True)):
            yield from _read_as_numbers(value, inner, (*place, index))


def _part(read: Any, key: Any) -> Any:
    if isinstance(read, Mapping):
        return read.get(key)
    if not isinstance(read, BaseModel):
        return None
    names = {field.alias or name: name for name, field in type(read).model_fields.items()}
    return getattr(read, names.get(key, str(key)), None)
