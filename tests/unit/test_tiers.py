"""The tests' own order: long tiers first, what shares a fixture in one process, and a time for each tier."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiers


def test_every_folder_of_tests_is_a_tier() -> None:
    tests = Path(tiers.__file__).parent
    folders = {path.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")}
    assert folders == set(tiers.TIERS)


def test_long_files_of_a_tier_come_first() -> None:
    ids = ["tests/unit/a/test_a.py::f", "tests/integration/test_api.py::f", "tests/integration/test_run.py::TestX::f",
           "tests/integration/test_doctor.py::f", "tests/cluster/test_submit.py::f"]  # fmt: skip
    assert sorted(ids, key=tiers.place_of) == [ids[4], ids[2], ids[3], ids[1], ids[0]]
    files = {path.stem for path in Path(tiers.__file__).parent.glob("integration/test_*.py")}
    assert set(tiers.LONG) <= files


def test_tests_of_a_file_stay_together() -> None:
    ids = ["tests/unit/a/test_a.py::test_x[b/c::d]", "tests/unit/a/test_a.py::TestY::test_z", "tests/unit/test_b.py::f"]
    assert [tiers.group_of(each) for each in ids] == ["tests/unit/a/test_a.py"] * 2 + ["tests/unit/test_b.py"]


def test_all_of_e2e_stays_together() -> None:
    tests = Path(tiers.__file__).parent
    files = [path.relative_to(tests.parent).as_posix() for path in (tests / "e2e").glob("test_*.py")]
    assert {tiers.group_of(f"{file}::test") for file in files} == {"e2e"}
    assert all((tests.parent / file).is_file() for file in tiers.TOGETHER)


def test_seconds_are_added_up_by_tier() -> None:
    reports = [SimpleNamespace(nodeid=f"tests/{name}", duration=seconds)
               for name, seconds in (("unit/a", 1.0), ("unit/a", 2.0), ("unit/b", 3.0), ("e2e/c", 60.0))]  # fmt: skip
    assert [line.split() for line in tiers.time_lines(reports)] == [
        ["unit", "2", "tests", "6", "s"], ["e2e", "1", "tests", "60", "s"]]  # fmt: skip


class Process:
    """A process of tests as xdist's scheduler sees it."""

    shutting_down = False

    def __init__(self) -> None:
        self.gateway, self.sent = SimpleNamespace(id="gw"), list[int]()

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def test_the_last_process_takes_units_while_the_others_take_the_long_tiers(pytestconfig: pytest.Config) -> None:
    tests = [f"tests/{tier}/test_{name}.py::test_{i}" for tier in tiers.TIERS for name in "ab" for i in range(3)]
    option = SimpleNamespace(loadscopereorder=True)
    config = SimpleNamespace(option=option, getvalue=lambda name: ["popen"] * 3, hook=None)
    scheduler = pytestconfig.hook.pytest_xdist_make_scheduler(config=config, log=None)
    processes = [Process() for _ in range(3)]
    for process in processes:
        scheduler.add_node(process)
        scheduler.add_node_collection(process, tests)
    scheduler.schedule()
    assert [[tests[i] for i in process.sent] for process in processes] == [tests[:3], tests[3:6], tests[-3:]]


def test_there_is_one_process_more_than_cores() -> None:
    assert [tiers.process_count(cpus) for cpus in (1, 2, 4, 64)] == [2, 3, 5, 5]
