"""A storage folder that was moved or copied: new work is written below it, and old work is read from it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import tiny

from orchestrator.registry import Registry, Version

FILE = json.dumps({"weights_digest": hashlib.sha256(b"weights").hexdigest()})
NAME = "wt_feature%2Fx y#z"  # special in URIs


def open_at(root: Path) -> Registry:
    return Registry.open(f"sqlite:///{root.as_posix().replace('%', '%25')}/mlflow.db", root / "mlartifacts")


def record(root: Path, files: Path, task: str, *, fail: bool = False) -> Version | None:
    """Record an expert as a driver does, or leave its run unfinished."""
    with open_at(root).hold_lease("lib", "ttmoe run", print) as registry:
        registry.start_run("lib", "run", {}, "", {})
        run = registry.expert_run("lib", "none", task, "aa11", {})
        version = None if fail else registry.register_expert("lib", task, "aa11", files, run, {})
        registry.finish_run(run, "FAILED" if fail else "FINISHED")
    return version


def text(root: Path, version: Version) -> str:
    return open_at(root).read_file(version, "expert.json")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tiny.write_expert_files(tmp_path / "made", b"weights")


@pytest.fixture
def old(fresh_store: Path, tmp_path: Path, files: Path) -> tuple[Path, Version]:
    """A storage folder with an expert, and the unfinished run of another."""
    root = tmp_path / NAME
    root.mkdir()
    shutil.copy(fresh_store, root)
    version = record(root, files, "trec")
    assert version
    record(root, files, "sst2", fail=True)
    return root, version


@pytest.mark.parametrize("task", ["cola", "sst2"])  # with a new run, and with the continued one
@pytest.mark.parametrize("blocked", [False, True])
def test_new_work_of_a_moved_folder_is_below_it(
    tmp_path: Path, old: tuple[Path, Version], files: Path, task: str, blocked: bool
) -> None:
    root, version = old
    moved = root.rename(tmp_path / "a%b c" if blocked else tmp_path / "moved")
    if blocked:
        root.write_text("the old place cannot be created")
    made = record(moved, files, task)
    assert made
    assert root.exists() == blocked
    assert open_at(moved).fetch(made).is_relative_to(moved / "mlartifacts" / "lib")
    assert open_at(moved).has_files(version)
    assert text(moved, version) == text(moved, made) == FILE
    again = moved.rename(tmp_path / "again")
    assert text(again, version) == text(again, made) == FILE


def test_a_copy_reads_and_writes_its_own_files(tmp_path: Path, old: tuple[Path, Version], files: Path) -> None:
    root, version = old
    before = sorted(root.rglob("*"))
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    (copy / "mlartifacts" / "lib" / version.run_id / "artifacts" / "expert" / "expert.json").write_text("copied")
    assert (text(root, version), text(copy, version)) == (FILE, "copied")
    for task in ("cola", "sst2"):
        made = record(copy, files, task)
        assert made
        assert open_at(copy).fetch(made).is_relative_to(copy)
    assert sorted(root.rglob("*")) == before


def test_a_folder_with_a_percent_sign_has_no_double(tmp_path: Path, old: tuple[Path, Version]) -> None:
    assert {path.name for path in tmp_path.iterdir()} == {NAME, "made"}
