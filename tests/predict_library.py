"""A tiny library of three experts, registered as a run does it, and rows of every form that it answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "unit" / "ttmoe"))  # the library that the model's own tests are made of
from library import KINDS, base_of, save_library

ROWS: list[dict[str, Any]] = [
    {"text": "red north1"},
    {"text": "red north1", "second": "cat"},
    {"text": "cat south2 dog"},
    {"text": "red", "choices": ["cat", "dog", "north1 north2"]},
    {"text": "blue south1 cat south9"},
    {"text": "south1", "second": "north2"},
    {"text": "green", "choices": ["dog", "north4"]},
    {"text": "south4 north4 red"},
]


def register_library(root: Path, base_folder: Path, scratch: Path) -> Path:
    """Register library ``lib`` in the store below ``root``; the router's folder."""
    from orchestrator.registry import Registry

    root.mkdir(exist_ok=True)
    base = base_of(base_folder)
    folder = save_library(scratch / "library", base)
    registry = Registry.open(f"sqlite:///{root}/mlflow.db", root / "mlartifacts")
    run = registry.start_run("lib", "run", {}, "", {})
    for task in KINDS:
        registry.register_expert("lib", task, f"{task}-hash", folder / "experts" / task, run, {}, promote=True)
    lock = {task: f"{task}-hash" for task in KINDS}
    router = registry.register_router("lib", "router-hash", folder, lock, run, {}, base_folder=base_folder)
    registry.finish_run(run, "FINISHED")
    return registry.fetch(router)


def answers_of(folder: Path, base_folder: Path, rows: list[dict[str, Any]]) -> list[Any]:
    """What the routed model itself says."""
    from orchestrator.predict.input_columns import InputColumns
    from ttmoe.routed import RoutedModel

    inputs = [InputColumns().input_of(row, "") for row in rows]
    return RoutedModel.load(folder, base_of(base_folder)).predict(inputs)


def check_alike(found: list[dict[str, Any]], answers: list[Any]) -> None:
    """The rows hold the answers; numbers may differ in the last digits, as batches differ."""
    import pytest

    assert len(found) == len(answers)
    for row, answer in zip(found, answers, strict=True):
        assert (row["task"], row["label"]) == (answer.task, answer.label)
        assert (row["confidence"], row["routing"]) == pytest.approx((answer.confidence, answer.routing), abs=1e-5)
        assert dict(row["scores"]) == pytest.approx(answer.scores, abs=1e-5)
