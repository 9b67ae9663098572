"""The tests' own order: long tiers first, what shares a fixture in one process, and a time for each tier."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import tiers


def test_every_folder_of_tests_is_a_tier() -> None:
    tests = Path(tiers.__file__).parent
    folders = {path.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")}
    assert folders == set(tiers.TIERS)


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
