"""A Ray cluster of several nodes on this machine, started as its administrator would."""

from __future__ import annotations

import itertools
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import tiny
from commands import SCRIPT, environment


@contextmanager
def running_cluster(*nodes: list[str], dashboard_port: int = 0, **env: str) -> Iterator[tuple[str, list[str]]]:
    """Start a cluster with ``ray start``, each node on a loopback address of its own.

    Args:
        nodes: Further arguments of ``ray start`` for each node; the first is the head.
        dashboard_port: Port of the dashboard, which takes jobs, on 127.0.0.2; 0 for none.
        env: Environment variables of its processes.

    Yields:
        Its address, and the mark in the environment of each node's processes.
    """
    port = free_port()
    address, marks = f"127.0.0.2:{port}", [f"node-{secrets.token_hex(8)}" for _ in nodes]
    dashboard = ["--include-dashboard=false"]
    if dashboard_port:
        dashboard = ["--dashboard-host=127.0.0.2", f"--dashboard-port={dashboard_port}"]
    common = ["--object-store-memory=100000000", "--disable-usage-stats"]
    try:
        for i, (mark, arguments) in enumerate(zip(marks, nodes, strict=True)):
            place = [f"--address={address}"] if i else ["--head", f"--port={port}", *dashboard]
            # Nodes with one folder would unpack a job's files over each other, and with Ray's own folder a job would
            # be sent to the cluster that was started last on this machine.
            place.append(f"--temp-dir=/tmp/{mark}")
            agent = f"--dashboard-agent-listen-port={free_port()}"  # two clusters with one port could take no jobs
            own = [f"--node-ip-address=127.0.0.{i + 2}", agent, *arguments, *common]
            done = subprocess.run([SCRIPT.parent / "ray", "start", *place, *own], capture_output=True, text=True,
                                  env=environment(TTMOE_TEST=mark, **env), timeout=90, check=False)  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
        yield address, marks
    finally:
        for process in itertools.chain.from_iterable(map(marked, marks)):
            process.kill()
        for mark in marks:
            shutil.rmtree(f"/tmp/{mark}", ignore_errors=True)


@contextmanager
def own_session(name: str) -> Iterator[str]:
    """Open an embedded Ray session, and check afterwards that all its processes have ended.

    Yields:
        The mark in the environment of its processes.
    """
    from cluster.local import ray_session

    mark = f"{name}-{secrets.token_hex(8)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTMOE_TEST", mark)
        with ray_session():
            yield mark
    assert tiny.left_running(mark) == []


def free_port() -> int:
    """Return a port of 127.0.0.2 that nothing uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.2", 0))
        return int(found.getsockname()[1])


def marked(mark: str, name: str = "") -> list[psutil.Process]:
    """Return the processes with this mark in their environment whose command line starts with ``name``."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.environ().get("TTMOE_TEST") == mark and line and line.startswith(name):
                found.append(process)
        except psutil.Error:
            continue
    return found
