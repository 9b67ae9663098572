"""Whether a process still runs, as far as this one can see."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from orchestrator.registry.process_identity import presence, this_process


@pytest.fixture
def ended():
    """The identity of a process that has ended, of which /proc shows nothing, as of a hidden one."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(this_process(), process=process.pid)


def test_a_process_that_the_system_hides_is_not_gone(ended, monkeypatch):
    def refuse(process, number):
        raise PermissionError

    assert presence(ended) == "gone"
    monkeypatch.setattr(os, "kill", refuse)
    assert presence(ended) == "unknown"


def test_a_process_is_told_from_a_later_one_of_the_same_id():
    assert presence(this_process()) == "running"
    assert presence(replace(this_process(), started="1")) == "gone"
