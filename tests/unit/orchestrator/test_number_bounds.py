"""Every number of a config: what torch, Ray, MLflow or the operating system cannot take is refused with its key."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator.config.loading import load_config
from orchestrator.config.schema import Config
from ttmoe.errors import InputError
from workers.data.task import DeclaredRows, SplitSettings

SECTIONS = {"adapter": None, "train": None, "router": None, "resources": None, "failures": None, "limits": None,
            "storage": None, "search": {"task": "t", "method": "random"}}  # fmt: skip
INTEGERS = (-1, -(2**63), 2**63, 10**25)
FLOATS = (-1.0, float("inf"), float("-inf"), float("nan"), 1e39, 1e308)
TOO_SMALL = 1e-46
# Of no unit, so that any number above 0 is taken.
SHARES = ("warmup", "dropout", "head_dropout", "label_smoothing", "unknown", "accuracy_within", "require")
TIMES = ("hours", "minutes", "_gb")  # which have bounds of their own


def members(annotation: Any) -> Iterator[Any]:
    """The types of a union, without what annotates them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from members(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for each in typing.get_args(annotation):
            yield from members(each)
    else:
        yield annotation


def numbers(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type]]:
    """The key and type of each number of a section, lists of numbers as their first item."""
    for name, field in model.model_fields.items():
        for kind in members(field.annotation):
            if kind in (int, float):
                yield f"{prefix}.{name}", kind
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numbers(kind, f"{prefix}.{name}")


KEYS = [("seed", int), ("base.max_length", int)] + [
    pair
    for section in SECTIONS
    for kind in members(Config.model_fields[section].annotation)
    if isinstance(kind, type) and issubclass(kind, BaseModel)
    for pair in numbers(kind, section)
]


def check(key: str, value: Any) -> str:
    """The message about a value of one key; empty if it is taken."""
    task = {"kind": "text", "source": {"path": "a.csv"}, "columns": {"text": "text"}, "label": {"column": "label"}}
    data: dict[str, Any] = {"library": "l", "base": {"folder": "b"}, "tasks": {"t": task}}
    data |= {name: dict(value) for name, value in SECTIONS.items() if value}
    *path, last = key.split(".")
    inner = data
    for name in path:
        inner = inner.setdefault(name, {})
    inner[last] = value
    if "rungs" in path:
        inner.setdefault("first", 2)
    try:
        load_config(data)
    except InputError as error:
        return str(error)
    return ""


def test_all_numbers_are_found() -> None:
    keys = {key for key, _ in KEYS}
    assert {"train.lr", "search.rungs.first", "search.train.steps", "train.deepspeed.param_persistence_threshold",
            "storage.trunk_gb", "resources.gpus_per_expert", "search.budget.minutes"} <= keys  # fmt: skip


@pytest.mark.parametrize(("key", "kind"), KEYS)
def test_numbers_that_nothing_can_compute_with_are_refused_by_their_key(key: str, kind: type) -> None:
    for value in INTEGERS if kind is int else FLOATS:
        if key == "resources.cpus_per_expert" and value == 1e308:
            continue
        assert key in check(key, value), value
    name = key.rpartition(".")[2]
    if kind is float and name not in SHARES and not name.endswith(TIMES):
        assert key in check(key, TOO_SMALL)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 2**63 - 1), ("train.seed", 0), ("adapter.alpha", 1e-30), ("train.steps", 2**31 - 1), ("train.clip", 0),
     ("train.weight_decay", 0.0), ("limits.hours", 1e6), ("limits.hours", 1e-9), ("resources.gpus_per_expert", 0),
     ("resources.gpus_per_expert", 0.25), ("resources.cpus_per_expert", 0.0001), ("storage.trunk_gb", 0),
     ("search.seed", 2**32), ("failures.retries", 0)],
)  # fmt: skip
def test_numbers_at_the_bounds_are_taken(key: str, value: Any) -> None:
    assert check(key, value) == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [("search.cores", [2, 65]), ("search.ranks", [2**31]), ("search.references", [2**31]),
     ("search.space", {"alpha": [1e39]}), ("search.space", {"lr": [1e-46]}), ("router.layers", [-1]),
     ("resources.gpus_per_expert", 1e-5), ("resources.cpus_per_expert", 1e-5)],
)  # fmt: skip
def test_numbers_of_lists_and_shares_are_refused_too(key: str, value: Any) -> None:
    assert key in check(key, value)


@pytest.mark.parametrize("more", [{"rows": 10**13}, {"tokens": 2**31}, {"classes": 10**7}])
def test_declared_rows_have_bounds(more: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="less than or equal"):
        DeclaredRows(**({"rows": 9, "tokens": 5} | more))


def test_splits_have_bounds() -> None:
    for sample in (0, 2**31):
        with pytest.raises(ValueError, match="sample"):
            SplitSettings(sample=sample)


@pytest.mark.parametrize("key", ["storage.root", "storage.cache", "base.folder", "tracking.uri", "on_end"])
def test_a_text_with_nul_is_refused_with_its_place(tmp_path: Path, key: str) -> None:
    path = tmp_path / "c.yaml"
    section, _, last = key.partition(".")
    text = f'{section}:\n  {last}: "a\\0b"\n' if last else f'{section}: "a\\0b"\n'
    path.write_text("library: l\n" + ("" if section == "base" else "base: {folder: b}\n") + text)
    with pytest.raises(InputError, match="NUL") as caught:
        load_config(path)
    assert caught.value.where.startswith(f"{path}:")
    assert caught.value.where.endswith(key)
