"""The driver is killed after each of its changes of state in turn, and run again: the registry is as if undisturbed."""

from __future__ import annotations

import importlib
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import tiny
from commands import open_registry
from killed_driver import life, registry_content, side_by_side

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
def start(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything is ready and nothing has run; the cache of prepared data is there."""
    # Imported before the lives are forked: each would pay for it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, about type hints of its own
        for name in ("mlflow.pyfunc", "orchestrator.run.driver", "orchestrator.run.stage2", "orchestrator.report"):
            importlib.import_module(name)
    folder = tmp_path_factory.mktemp("killed") / "start"
    shutil.copytree(base_folder, folder / "base")
    tiny.write_texts(folder / "colours.jsonl", tiny.COLOURS, "north", 90)
    tiny.write_texts(folder / "animals.jsonl", tiny.ANIMALS, "south", 90)
    (folder / "tiny.yaml").write_text(CONFIG)
    open_registry(folder / "runs")  # its tables take seconds to make; that this is whole or not is tested elsewhere
    return folder


@pytest.fixture(scope="module")
def undisturbed(start: Path) -> tuple[dict, int]:
    """The registry's content after one life, and the changes that made it."""
    folder = _fresh(start, "undisturbed")
    code, changes = life(folder / "tiny.yaml")
    assert code == 0
    content = registry_content(folder / "runs")
    assert set(content["versions"]) == {("tiny.colours", 1), ("tiny.animals", 1), ("tiny.router", 1)}
    return content, changes


def test_a_second_life_changes_nothing(start, undisturbed):
    folder = start.parent / "undisturbed"
    code, changes = life(folder / "tiny.yaml")
    assert (code, changes) == (0, 0)
    assert registry_content(folder / "runs") == undisturbed[0]


def test_killed_after_any_change_the_next_life_ends_as_if_nothing_had_been(start, undisturbed, request):
    """After each change with ``--thorough``, else after every sixth."""
    content, changes = undisturbed
    assert changes > 40
    apart = 1 if request.config.getoption("--thorough") else 6

    def check(after: int) -> None:
        folder = _fresh(start, f"killed{after}")
        assert life(folder / "tiny.yaml", after) == (-signal.SIGKILL, after)
        assert life(folder / "tiny.yaml")[0] == 0, after
        assert registry_content(folder / "runs") == content, after

    assert side_by_side(check, range(1, changes + 1, apart)) == []


def test_killed_again_and_again_it_still_comes_to_the_end(start, undisturbed):
    """Each life is killed after 30 changes, of which some are the beginning's: what it did beyond them is kept."""
    folder = _fresh(start, "again")
    ends = []
    while 0 not in ends and len(ends) < 20:
        ends.append(life(folder / "tiny.yaml", 30)[0])
    assert ends[:-1] == [-signal.SIGKILL] * (len(ends) - 1)
    assert len(ends) > 3
    assert ends[-1] == 0
    assert registry_content(folder / "runs") == undisturbed[0]


def _fresh(start: Path, name: str) -> Path:
    """A folder of its own for each: a store that this process has read stays open in the children it forks."""
    folder = start.parent / name
    shutil.copytree(start, folder)
    return folder
