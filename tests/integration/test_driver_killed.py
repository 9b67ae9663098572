"""The driver is killed after each registry write in turn and run again: the registry is the same as without kills."""

from __future__ import annotations

import importlib
import random
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import tiny
from killed_driver import check_in_parallel, registry_content, run_driver

pytestmark = pytest.mark.integration

CONFIG = """\
library: tiny
base: {folder: base, max_length: 32, dtype: float32}
adapter: {rank: 2}
train: {steps: 6, batch_size: 8, eval_every: 3}
tasks:
  colours:
    kind: text
    source: {path: colours.jsonl}
    columns: {text: text}
    label: {column: label}
  animals:
    kind: text
    source: {path: animals.jsonl}
    columns: {text: text}
    label: {column: label}
router: {batch_size: 32, epochs: 2}
"""


@pytest.fixture(scope="module")
def start(base_folder: Path, fresh_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base, the data, the config and an empty registry."""
    # Imported before the child processes are forked, so that they need not import it each.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about its own type hints
        for name in ("mlflow.pyfunc", "orchestrator.run.driver", "orchestrator.run.stage2", "orchestrator.report"):
            importlib.import_module(name)
    folder = tmp_path_factory.mktemp("killed") / "start"
    # Interruptions of the creation of the store are tested elsewhere.
    return tiny.write_two_tasks(folder, base_folder, fresh_store, CONFIG)


@pytest.fixture(scope="module")
def undisturbed(start: Path) -> tuple[dict, int]:
    """The registry's content after an uninterrupted run, and the number of writes."""
    folder = _fresh(start, "undisturbed")
    code, writes = run_driver(folder / "tiny.yaml")
    assert code == 0
    content = registry_content(folder / "runs")
    assert set(content["versions"]) == {("tiny.colours", 1), ("tiny.animals", 1), ("tiny.router", 1)}
    return content, writes


def test_a_second_run_changes_nothing(start, undisturbed):
    folder = start.parent / "undisturbed"
    code, writes = run_driver(folder / "tiny.yaml")
    assert (code, writes) == (0, 3)  # its claim to the library: made, held, removed
    assert registry_content(folder / "runs") == undisturbed[0]


def test_killed_after_any_write_the_next_run_ends_as_if_nothing_had_been(start, undisturbed, request):
    """Each write with ``--thorough``, else every 47th from a random one on."""
    content, writes = undisturbed
    assert writes > 40
    interval = 1 if request.config.getoption("--thorough") else 47
    first = random.randrange(interval) + 1

    def check(after: int) -> None:
        folder = _fresh(start, f"killed{after}")
        assert run_driver(folder / "tiny.yaml", after) == (-signal.SIGKILL, after)
        assert run_driver(folder / "tiny.yaml")[0] == 0, after
        assert registry_content(folder / "runs") == content, after

    assert check_in_parallel(check, range(first, writes + 1, interval)) == []


@pytest.mark.thorough
def test_killed_again_and_again_it_still_comes_to_the_end(start, undisturbed):
    """Each run is killed after 30 writes, some of which every run makes; the others are kept."""
    folder = _fresh(start, "again")
    ends = []
    while 0 not in ends and len(ends) < 20:
        ends.append(run_driver(folder / "tiny.yaml", 30)[0])
    assert ends[:-1] == [-signal.SIGKILL] * (len(ends) - 1)
    assert len(ends) > 3
    assert ends[-1] == 0
    assert registry_content(folder / "runs") == undisturbed[0]


def _fresh(start: Path, name: str) -> Path:
    """Copy the folder for one test, because a store that this process has read stays open in forked processes."""
    folder = start.parent / name
    shutil.copytree(start, folder)
    return folder
