"""A process is told from others: of other hosts and containers, and from one that got its id."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from orchestrator.registry import process_identity
from orchestrator.registry.process_identity import presence, this_process


def test_this_process_runs():
    assert this_process() == this_process()
    assert presence(this_process()) == "running"
    assert this_process().process == os.getpid()


def test_a_process_that_got_the_id_of_another_is_not_taken_for_it():
    assert presence(replace(this_process(), started="1")) == "gone"


def test_an_ended_process_is_gone_also_while_its_exit_code_is_unread():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = replace(this_process(), process=child.pid, started=process_identity._started(child.pid))
    assert presence(identity) == "running"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert presence(identity) == "gone"
    child.communicate()
    assert presence(identity) == "gone"


@pytest.mark.parametrize("hidden", ["boot_id", "namespace"])
def test_another_machine_or_container_says_nothing_of_its_processes(hidden, monkeypatch):
    """Both may have the same host name and a process of the same id."""
    own = this_process()
    if hidden == "namespace":
        monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]")
    else:
        monkeypatch.setattr(process_identity.Path, "read_text", lambda path: "another boot\n")
    assert this_process().machine != own.machine
    assert presence(own) == "unknown"


def test_where_proc_cannot_be_read_the_start_time_is_psutils(monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(process_identity.Path, "read_text", refuse)
    assert presence(this_process()) == "running"
    assert presence(replace(this_process(), started="1.0")) == "gone"
    own = this_process()
    monkeypatch.setattr(psutil, "Process", lambda process: (_ for _ in ()).throw(psutil.AccessDenied(process)))
    assert presence(own) == "unknown"  # the process of another user
