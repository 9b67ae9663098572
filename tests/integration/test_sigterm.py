"""SIGTERM ends a command that has started Ray as Ctrl-C does: in order, and with a code of its own."""

from __future__ import annotations

import subprocess
import sys

import commands
import pytest

pytestmark = pytest.mark.integration

CODE = """
import os, signal, threading

import ray

from cluster.local import ray_session
from orchestrator.cli import startup
from orchestrator.cli.commands import app
from orchestrator.run import driver

def run_library(*_):
    with ray_session():
        try:
            threading.Timer(1, os.kill, (TARGET, signal.SIGTERM)).start()
            ray.get(ray.remote(num_cpus=1000)(lambda: 0).remote())  # never runs
        finally:
            assert ray.get(ray.remote(num_cpus=0)(lambda: 7).remote()) == 7  # trainings can be stopped in order
            print("ended in order", flush=True)

driver.run_library = run_library
startup.prepare_command()
app(["run", "quickstart"])
"""


@pytest.mark.parametrize("target", ["os.getpid()", "-os.getpgrp()"], ids=["process", "group"])
def test_sigterm_with_ray_ends_the_command_in_order(target) -> None:
    env = commands.environment(PYTHONPATH=":".join(sys.path))
    code = CODE.replace("TARGET", target)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env=env, timeout=120, check=False, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (143, "ended in order\n"), done.stderr
    assert done.stderr == "stopped; repeat the command to continue\n"
