"""Files as five tools write them go through ``init``, ``data``, ``plan`` and ``run``, and nobody edits the config."""

from __future__ import annotations

from pathlib import Path

import own_files
import pytest
from commands import cells, here, open_registry, succeeded
from killed_driver import units_inline

pytestmark = pytest.mark.integration

TASKS = ("kundenstimmen_2024", "headlines", "nli", "service", "project-1-at-2024-05-02-08-12-0f5a1b2c")


@pytest.fixture(scope="module")
def home(tmp_path_factory, fresh_store) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "runs").mkdir()
    (folder / "runs" / fresh_store.name).write_bytes(fresh_store.read_bytes())
    own_files.write_own_files(folder)
    return folder


@pytest.fixture(scope="module")
def small(base_folder) -> list[str]:
    """What makes the run short; nothing of it is about the data."""
    settings = [f"base={{folder: {base_folder}, dtype: float32, max_length: 32}}", "train.steps=60", "train.lr=2e-2",
                "train.eval_every=30", "router.unknown=0", "router.compare_depths=false"]  # fmt: skip
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def config(home) -> str:
    names = [path.name for path in sorted(home.iterdir()) if path.is_file()]
    succeeded(here(home, "init", *names))
    return "ttmoe.yaml"


def test_the_config_is_planned_as_it_is(home, config):
    """On the base that it names, which is installed with the quickstart."""
    assert "5 experts: 5 missing" in succeeded(here(home, "plan", config)).out


def test_the_data_is_shown(home, config):
    out = succeeded(here(home, "data", config)).out
    assert all(f"{task}: kind" in out for task in TASKS)
    assert "no row has more than base.max_length" in out


def test_the_library_is_trained(home, config, small):
    with units_inline():
        out = succeeded(here(home, "run", config, *small)).out
    assert {each.task for each in open_registry(home / "runs").experts("my-library")} == set(TASKS)
    for task in ("kundenstimmen_2024", "headlines", "service"):
        assert float(cells(out, task)[3]) > 0.8
