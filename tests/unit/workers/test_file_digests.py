"""Digests of files are remembered while the files do not change, and only then."""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.experts.base_folder import find_base
from ttmoe.base import sha256_of_file
from workers.base.base_sources import resolve_base
from workers.data import file_digests
from workers.data.file_digests import remembered_digest
from workers.data.sources import source_identity
from workers.data.task import Source


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read for their digest; every file was written a while ago."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr(file_digests, "sha256_of_file", counted)
    monkeypatch.setattr(file_digests, "time_ns", lambda: time.time_ns() + 2 * file_digests.SETTLING_NS)
    return names


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_for_a_tick(path: Path) -> None:
    """Wait until the clock of the file system shows another time than the file's."""
    probe, before = path.with_name("probe"), path.stat().st_ctime_ns
    while True:
        probe.write_text("x")
        if probe.stat().st_ctime_ns != before:
            return


def test_a_file_that_did_not_change_is_read_once(file, tmp_path, read, monkeypatch):
    cache = tmp_path / "cache"
    assert remembered_digest(file, cache) == sha256(file)
    assert remembered_digest(file, cache) == sha256(file)
    monkeypatch.chdir(tmp_path)
    assert remembered_digest(Path("rows.csv"), cache) == sha256(file)
    assert read == ["rows.csv"]
    remembered_digest(file, tmp_path / "other cache")
    assert len(read) == 2


def _rewrite(file: Path) -> None:
    """Change the content, and keep size and time of modification."""
    times = file.stat()
    file.write_text("text,LABEL\n")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _replace(file: Path) -> None:
    """Put another file of the same size and time of modification in its place."""
    times, other = file.stat(), file.with_name("other")
    other.write_text("text,OTHER\n")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, file)


def _retarget(file: Path) -> None:
    """Replace it by a link to another file."""
    other = file.with_name("target")
    other.write_text("text,third\n")
    file.unlink()
    file.symlink_to(other)


@pytest.mark.parametrize("change", [_rewrite, _replace, _retarget, Path.touch])
def test_a_changed_file_is_read_again(file, tmp_path, read, change):
    remembered_digest(file, tmp_path / "cache")
    wait_for_a_tick(file)
    change(file)
    for _ in range(2):
        assert remembered_digest(file, tmp_path / "cache") == sha256(file)
    assert len(read) == 2


def test_the_digest_of_a_file_that_just_changed_is_not_kept(file, tmp_path, read, monkeypatch):
    monkeypatch.setattr(file_digests, "time_ns", time.time_ns)
    remembered_digest(file, tmp_path / "cache")
    remembered_digest(file, tmp_path / "cache")
    assert len(read) == 2
    assert not (tmp_path / "cache").exists()


def test_the_digest_of_a_file_that_changes_while_it_is_read_is_not_kept(file, tmp_path, read, monkeypatch):
    def changed_meanwhile(path: Path) -> str:
        digest = sha256_of_file(path)
        path.write_text("more and more")
        return digest

    monkeypatch.setattr(file_digests, "sha256_of_file", changed_meanwhile)
    remembered_digest(file, tmp_path / "cache")
    monkeypatch.setattr(file_digests, "sha256_of_file", sha256_of_file)
    assert remembered_digest(file, tmp_path / "cache") == sha256(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"state": [1]}', "digest", "\xff"])
def test_a_corrupt_memo_is_replaced(file, tmp_path, read, text):
    remembered_digest(file, tmp_path / "cache")
    (memo,) = (tmp_path / "cache" / "digests").iterdir()
    whole = memo.read_text()
    memo.write_text(json.dumps(json.loads(whole) | {"digest": "short"}) if text == "digest" else text, "latin-1")
    assert remembered_digest(file, tmp_path / "cache") == sha256(file)
    assert memo.read_text() == whole
    assert len(read) == 2


def test_a_cache_that_cannot_be_written_is_no_error(file, read):
    for _ in range(2):
        assert remembered_digest(file, file / "cache") == sha256(file)  # a file is no folder
    assert len(read) == 2


def test_processes_may_share_the_cache(file, tmp_path, read):
    with ThreadPoolExecutor(8) as threads:
        digests = set(threads.map(lambda _: remembered_digest(file, tmp_path / "cache"), range(64)))
    assert digests == {sha256(file)}
    assert len(list((tmp_path / "cache" / "digests").iterdir())) == 1  # and no part of a memo
    read.clear()
    remembered_digest(file, tmp_path / "cache")
    assert read == []


def test_the_files_of_a_base_and_of_sources_share_the_cache(base_folder, tmp_path, read):
    config = base_folder / "config.json"
    for _ in range(2):
        base = resolve_base(folder=str(base_folder), cache=tmp_path, dtype="float32", max_length=32, pooling="mean")
        assert source_identity(Source(path=str(config)), tmp_path) == sha256(config)
    assert sorted(read) == sorted(set(read))
    assert {"config.json", "model.safetensors"} <= set(read)
    assert base.digest == resolve_base(folder=str(base_folder), cache=tmp_path / "no").digest


def test_a_base_is_read_whole_without_a_cache(base, tmp_path, read):
    folder = Path(base.folder)
    find_base(base.record(), [base.folder], tmp_path)
    assert "model.safetensors" in read
    read.clear()
    find_base(base.record(), [base.folder], tmp_path)
    assert read == []
    for memo in (tmp_path / "digests").iterdir():
        memo.write_text(json.dumps(json.loads(memo.read_text()) | {"digest": "0" * 64}))
    assert find_base(base.record(), [base.folder]).folder == str(folder)  # the forged memos are not asked
