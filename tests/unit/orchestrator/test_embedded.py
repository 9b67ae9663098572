"""The end of a process of the embedded cluster while Ray waits. Programs with the names of Ray's stand for them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading

import pytest

from cluster import embedded
from cluster.embedded import embedded_cluster, require_alive, while_alive
from cluster.error import ClusterEndedError, ClusterStartError


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that starts such a program; it ends with the test."""
    monkeypatch.setattr(embedded, "CHECK_SECONDS", 0.01)
    started = []

    def run(name):
        if not (tmp_path / name).exists():
            shutil.copy(shutil.which("sleep"), tmp_path / name)
        started.append(subprocess.Popen([tmp_path / name, "60"]))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def waiting():
    """An event for which Ray waits until the end of the test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("ending", ["gcs_server", "raylet"])
def test_while_the_cluster_starts_is_an_error_at_once(start, waiting, ending):
    """Ray itself waits for half a minute, or ends this process after a whole one."""

    def init():
        processes = {name: start(name) for name in ("gcs_server", "raylet")}
        processes[ending].kill()
        waiting.wait(60)

    with pytest.raises(ClusterStartError, match=f"its process {ending} ended") as caught, embedded_cluster(init):
        pass
    assert (caught.value.code, waiting.is_set()) == (1, False)


def test_while_a_call_waits_for_ray_is_an_error_at_once(start, waiting):
    def init():
        started["gcs_server"], started["raylet"] = start("gcs_server"), start("raylet")

    def call():
        started["raylet"].kill()
        waiting.wait(60)

    started = {"earlier": start("raylet")}  # of a cluster before, which is no part of this one
    with embedded_cluster(init):
        started["earlier"].kill()
        assert while_alive(lambda: 5) == 5
        with pytest.raises(ClusterEndedError, match="raylet ended"):
            while_alive(call)
    require_alive()  # the next cluster is another one


@pytest.mark.parametrize(("end", "said"), [("os._exit(1)", "the end\n"), ("sys.exit(1)", "")])
def test_a_process_that_a_library_ends_leaves_a_message(end, said):
    """As Ray's core does when it reaches for objects and the raylet is gone."""
    code = f"import os, sys\nfrom cluster.reported_end import report_end\nwith report_end('the end'): {end}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, said)


def test_an_error_of_the_start_or_of_a_call_is_raised_as_it_is(start):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), embedded_cluster(fail):
        pass
    with pytest.raises(ZeroDivisionError):
        while_alive(fail)
