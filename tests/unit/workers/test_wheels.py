import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from ttmoe.errors import InputError
from workers.data import wheels
from workers.data.wheels import wheel_folder, wheel_member

FILES = {"pkg/data/a.txt": "alpha", "pkg/data/deep/b.txt": "beta", "pkg/data/deep/c/d.txt": "delta"}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A package index that is a folder with one wheel; gives the wheel's digest."""
    digest = make_wheel(tmp_path / "index")
    for key, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": str(tmp_path / "index"),
        "CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    return digest


def make_wheel(folder):
    folder.mkdir()
    path, info = folder / "pkg-1.0-py3-none-any.whl", "pkg-1.0.dist-info"
    about = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\nRequires-Dist: not-there\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for inside, data in {**FILES, **about}.items():
            archive.writestr(inside, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def no_pip(*_args, **_keywords):
    raise AssertionError("pip was called")


@pytest.mark.parametrize("pinned", [True, False])
def test_a_wheel_is_downloaded_once(offline, tmp_path, monkeypatch, pinned):
    digest = offline if pinned else None
    path = wheel_member("pkg==1.0", digest, "pkg/data/a.txt", tmp_path / "cache")
    assert path.read_text() == "alpha"
    assert offline in path.parts
    monkeypatch.setattr(subprocess, "run", no_pip)
    assert wheel_member("pkg==1.0", digest, "pkg/data/a.txt", tmp_path / "cache") == path
    assert wheel_member("pkg==1.0", digest, "pkg/data/deep/b.txt", tmp_path / "cache").read_text() == "beta"
    # A folder made on the way to a deeper one must not pass for the whole of it.
    inner = wheel_folder("pkg==1.0", digest, "pkg/data/deep/c", tmp_path / "cache")
    outer = wheel_folder("pkg==1.0", digest, "pkg/data/deep/", tmp_path / "cache")
    assert [p.name for p in inner.iterdir()] == ["d.txt"]
    assert sorted(p.name for p in outer.iterdir()) == ["b.txt", "c"]
    monkeypatch.setattr(zipfile, "ZipFile", no_pip)
    assert wheel_folder("pkg==1.0", digest, "pkg/data/deep", tmp_path / "cache") == outer
    with pytest.raises(AssertionError, match="pip"):
        wheel_member("pkg==1.0", digest, "pkg/data", tmp_path / "cache")
    assert not list((tmp_path / "cache" / "wheels").glob(".part-*"))


def test_another_digest_names_both_and_deletes_nothing(offline, tmp_path):
    with pytest.raises(InputError) as caught:
        wheel_member("pkg==1.0", "0" * 64, "pkg/data/a.txt", tmp_path / "cache")
    assert offline in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert caught.value.where == "pkg==1.0"
    assert (tmp_path / "index" / "pkg-1.0-py3-none-any.whl").exists()
    assert not (tmp_path / "cache" / "wheels" / offline).exists()


def test_a_changed_wheel_in_the_cache_is_not_used(offline, tmp_path):
    kept = wheel_member("pkg==1.0", offline, "pkg/data/a.txt", tmp_path).parents[3] / "pkg-1.0-py3-none-any.whl"
    kept.write_bytes(b"PK")
    with pytest.raises(InputError, match=offline):
        wheel_member("pkg==1.0", offline, "pkg/data/deep/b.txt", tmp_path)
    assert kept.exists()


def test_a_missing_member_names_near_ones(offline, tmp_path):
    with pytest.raises(InputError, match=r"holds no 'pkg/a\.txt'") as caught:
        wheel_member("pkg==1.0", offline, "pkg/a.txt", tmp_path)
    assert "pkg/data/a.txt" in caught.value.fix
    with pytest.raises(InputError, match="holds no 'pkg/data/deeper'") as caught:
        wheel_folder("pkg==1.0", offline, "pkg/data/deeper", tmp_path)
    assert "pkg/data/deep" in caught.value.fix
    with pytest.raises(InputError, match="holds no"):
        wheel_member("pkg==1.0", offline, "../../index", tmp_path)


def test_no_such_wheel_says_what_to_do(offline, tmp_path):
    with pytest.raises(InputError, match="pip cannot download") as caught:
        wheel_member("absent==1.0", None, "a", tmp_path)
    assert "PIP_FIND_LINKS" in caught.value.fix
    assert "absent" in caught.value.what
    with pytest.raises(InputError, match="not pinned"):
        wheel_member("--index-url=x", None, "a", tmp_path)


def test_no_pip_says_what_to_do(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2; exit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(InputError) as caught:
        wheel_member("pkg==1.0", None, "a", tmp_path)
    assert "ensurepip" in caught.value.fix


def test_two_at_once_give_one_file(offline, tmp_path, monkeypatch):
    together = threading.Barrier(2, timeout=20)
    really = wheels._publish

    def publish(made: Path, target: Path) -> None:
        if made.suffix == ".whl":  # both have downloaded, and neither is in place
            together.wait()
        really(made, target)

    monkeypatch.setattr(wheels, "_publish", publish)
    got = []
    take = lambda: got.append(wheel_member("pkg==1.0", offline, "pkg/data/a.txt", tmp_path))  # noqa: E731
    work = [threading.Thread(target=take) for _ in range(2)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(got) == 2
    assert got[0] == got[1]
    assert got[0].read_text() == "alpha"
