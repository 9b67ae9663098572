"""What tests of several folders share: the tiny base, and tasks on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny

import cluster  # noqa: F401  Ray's settings, which any test may be the first to need

# Read when transformers and torch are imported. No test may ask a model hub; and on the tiny base, threads that wait
# for one another on a busy machine make a step a hundred times slower.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also what takes minutes more: every moment of a crash")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--thorough`` its tests are not run, and said to be passed over."""
    if not config.getoption("--thorough"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="thorough: `make test-thorough` runs it"))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as a folder."""
    return tiny.save_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def base(base_folder: Path) -> Any:
    """The tiny base, resolved."""
    from workers.base.base_sources import resolve_base

    return resolve_base(folder=str(base_folder), cache=base_folder / "cache", dtype="float32", max_length=32)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A prepared task of three classes."""
    return _prepared("colours", tiny.COLOURS, "north", tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A prepared task of two classes, in other words."""
    return _prepared("animals", tiny.ANIMALS, "south", tmp_path_factory.mktemp("animals"))


def _prepared(name: str, words: tuple[str, ...], filler: str, folder: Path) -> Any:
    from workers.data.prepared import prepare_task
    from workers.data.task import Task

    path = tiny.write_texts(folder / "rows.jsonl", words, filler, 300)
    return prepare_task(name, Task.model_validate(tiny.text_task(path)), folder)
