"""The folder of a process on a disk, and the building of DeepSpeed's operator; the operator itself is not built."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from deepspeed.ops.op_builder import AsyncIOBuilder

from ttmoe.base import Base, digest_folder, empty_body
from ttmoe.errors import InputError
from workers.training.engines import disk_offload

OWN_FOLDER = """
import sys, time
from pathlib import Path
from workers.training.engines.disk_offload import _own_folder
own = _own_folder(Path(sys.argv[1]))
own.mkdir()
(own / "weights.swp").write_text("x")
print(own.name, flush=True)
time.sleep(100)
"""


def test_a_buffer_holds_the_largest_part(base_folder, tmp_path):
    base = Base("folder", "tiny", "", digest_folder(base_folder), str(base_folder), "float32", 32, "mean")
    settings = disk_offload.disk_settings(base, str(tmp_path), 3)
    largest = max(weight.numel() for weight in empty_body(base).parameters())
    assert settings["offload_param"]["buffer_size"] * 3 >= largest
    assert Path(settings["offload_param"]["nvme_path"]).parent == tmp_path


def test_the_folder_of_a_process_ends_with_it(tmp_path):
    code = [sys.executable, "-c", OWN_FOLDER, str(tmp_path)]
    left_behind = tmp_path / f"ttmoe-{os.uname().nodename}-999999999"
    of_other_host = tmp_path / "ttmoe-elsewhere-999999999"
    for folder in (left_behind, of_other_host):
        folder.mkdir()
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as first:
        own = tmp_path / first.stdout.readline().strip()
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as second:
            other = tmp_path / second.stdout.readline().strip()
            assert {path.name for path in tmp_path.iterdir()} == {own.name, other.name, of_other_host.name}
            second.send_signal(signal.SIGKILL)
        assert tiny.wait_for(lambda: not other.exists(), 10)
        assert (own / "weights.swp").exists()
        first.send_signal(signal.SIGKILL)
    assert tiny.wait_for(lambda: not own.exists(), 10)


@pytest.fixture
def extensions(tmp_path, monkeypatch):
    """Torch's folder of extensions, with the mark of a build that was killed."""
    disk_offload.require_disk_operator.cache_clear()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "async_io").mkdir()
    (tmp_path / "async_io" / "lock").touch()
    yield tmp_path
    disk_offload.require_disk_operator.cache_clear()


def test_a_build_that_was_killed_does_not_stop_the_next(extensions, monkeypatch, caplog):
    built = []
    monkeypatch.setattr(AsyncIOBuilder, "load", lambda self, verbose: built.append(list(extensions.rglob("lock"))))
    disk_offload.require_disk_operator()
    assert built == [[]]
    assert "compiling DeepSpeed's operator async_io" in caplog.text


def test_an_operator_that_cannot_be_built_says_what_to_install(extensions, monkeypatch):
    def fail(self, verbose):
        raise RuntimeError("details\nlibaio.h: No such file or directory\n")

    monkeypatch.setattr(AsyncIOBuilder, "load", fail)
    with pytest.raises(InputError, match="No such file") as error:
        disk_offload.require_disk_operator()
    assert "libaio-dev" in error.value.fix


def test_one_process_builds_at_a_time(extensions):
    script = """
import sys
from pathlib import Path
from workers.training.engines.disk_offload import _only_builder
with _only_builder(Path(sys.argv[1])):
    print("builds", flush=True)
    sys.stdin.readline()
"""
    code = [sys.executable, "-c", script, str(extensions)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(code, **pipes) as first:
        assert first.stdout.readline() == "builds\n"
        with subprocess.Popen(code, **pipes) as second:
            os.set_blocking(second.stdout.fileno(), False)
            time.sleep(3)
            assert not second.stdout.readline()
            first.kill()
            os.set_blocking(second.stdout.fileno(), True)
            assert second.stdout.readline() == "builds\n"
            second.communicate("\n")
