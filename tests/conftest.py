"""What tests of several folders share: the tiny base, and tasks on it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiers
import tiny

import cluster  # noqa: F401  Ray's settings, which any test may be the first to need

# Read when transformers and torch are imported. No test may ask a model hub; and on the tiny base, threads that wait
# for one another on a busy machine make a step a hundred times slower.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
# Ray gives its workers a niceness of 15: beside the tests of another process, their imports would take minutes.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

# A shell starts jobs in the background with SIGINT ignored, and the commands under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also what takes minutes more: every moment of a crash")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tiers and files run first. Without ``--thorough`` its tests are not run, and said to be passed over."""
    items.sort(key=lambda item: tiers.place_of(item.nodeid))
    if not config.getoption("--thorough"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="thorough: `make test-thorough` runs it"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The number of processes of ``-n auto``."""
    from cluster.machine import available_cpus

    return tiers.process_count(available_cpus())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``, a process takes the next group of tests, in their order, whenever it has ended one.

    The last process takes them from the end: its unit tests use the cores while tests on Ray wait.
    ``--dist=loadgroup`` would need a mark for each test and would append its group to its name.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return tiers.group_of(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            if len(self.nodes) > 1 and node is self.nodes[-1]:
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

    config.option.loadscopereorder = False
    return Groups(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the time of each tier, also when tests failed."""
    reports = [each for kind in terminalreporter.stats.values() for each in kind if hasattr(each, "duration")]
    if lines := tiers.time_lines(reports):
        terminalreporter.section("time by tier, in all processes together")
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as a folder."""
    return tiny.save_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of an empty store, to be copied, because creating its tables takes seconds."""
    from orchestrator.registry import Registry

    root = tmp_path_factory.mktemp("fresh")
    (root / "mlflow.db").touch()  # left by a crash, as test_registry.py checks
    (root / "mlflow.db.new").write_bytes(b"half")
    Registry.open(f"sqlite:///{root}/mlflow.db", root / "mlartifacts")
    return root / "mlflow.db"


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
