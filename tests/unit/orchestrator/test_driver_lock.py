import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from orchestrator.registry.driver_lock import driver_lock, local_driver
from orchestrator.registry.sqlite_store import open_sqlite
from ttmoe.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.registry.driver_lock import driver_lock
with driver_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lib")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_driver_is_refused_and_the_error_names_the_first(holder, tmp_path):
    with pytest.raises(InputError) as caught, driver_lock(tmp_path / "lib"):
        pass
    assert caught.value.what == f"another run of this library is in progress (process {holder.pid})"
    assert caught.value.where == str(tmp_path / "lib" / "driver.lock")
    assert "wait" in caught.value.fix


def test_another_library_is_free(holder, tmp_path):
    with driver_lock(tmp_path / "other"):
        pass


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_driver_holds_nothing(holder, tmp_path, how):
    holder.send_signal(how)
    holder.wait()
    with driver_lock(tmp_path / "lib"):
        pass


def test_the_lock_can_be_taken_again_and_an_error_frees_it(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), driver_lock(tmp_path / "a" / "lib"):
            raise ZeroDivisionError
    with driver_lock(tmp_path / "a" / "lib"), pytest.raises(InputError), driver_lock(tmp_path / "a" / "lib"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    """As Lustre mounted without flock, or NFS without its service."""

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(InputError, match="offers no file locks") as caught, driver_lock(tmp_path / "lib"):
        pass
    assert caught.value.where == str(tmp_path / "lib" / "driver.lock")
    assert local_driver(tmp_path / "lib") is None
    with pytest.raises(InputError, match="offers no file locks"):
        open_sqlite(tmp_path / "mlflow.db", tmp_path, lambda: None, "storage.root")
