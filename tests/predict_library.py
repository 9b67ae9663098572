"""A registered tiny library of three experts, and rows of every form."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "unit" / "ttmoe"))  # its module library.py makes the files
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


def register_library(root: Path, base_folder: Path, scratch: Path, store: Path) -> Path:
    """Register library ``lib`` in a copy of the empty ``store`` below ``root``; return the router's folder."""
    from orchestrator.registry import Registry

    root.mkdir(exist_ok=True)
    shutil.copy(store, root)
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
    """Return the answers of the routed model, loaded directly."""
    from orchestrator.predict.input_columns import InputColumns
    from ttmoe.routed import RoutedModel

    inputs = [InputColumns().input_of(row, "") for row in rows]
    return RoutedModel.load(folder, base_of(base_folder)).predict(inputs)


def check_printed(rows: list[dict[str, Any]], answers: list[Any]) -> None:
    """Assert that the rows that ``ttmoe predict`` wrote hold the answers, with numbers of 4 decimals."""
    for row in rows:
        numbers = [row["confidence"], row["routing"], *dict(row["scores"]).values()]
        assert numbers == [round(number, 4) for number in numbers]
    check_alike(rows, answers, tolerance=6e-5)


def check_alike(rows: list[dict[str, Any]], answers: list[Any], tolerance: float = 1e-5) -> None:
    """Assert that the rows hold the answers; numbers may differ in the last digits, because batches differ."""
    import pytest

    assert len(rows) == len(answers)
    for row, answer in zip(rows, answers, strict=True):
        assert (row["task"], row["label"]) == (answer.task, answer.label)
        assert (row["confidence"], row["routing"]) == pytest.approx((answer.confidence, answer.routing), abs=tolerance)
        assert dict(row["scores"]) == pytest.approx(answer.scores, abs=tolerance)
