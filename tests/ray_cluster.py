"""A Ray cluster of several nodes on this machine, started as its administrator would."""

from __future__ import annotations

import itertools
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from commands import SCRIPT, environment


@contextmanager
def running_cluster(*nodes: list[str], **env: str) -> Iterator[tuple[str, list[str]]]:
    """Start a cluster with ``ray start``, each node on a loopback address of its own.

    Args:
        nodes: Further arguments of ``ray start`` for each node; the first is the head.
        env: Environment variables of its processes.

    Yields:
        Its address, and the mark in the environment of each node's processes.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.2", 0))
        port = found.getsockname()[1]
    address, marks = f"127.0.0.2:{port}", [f"node-{secrets.token_hex(8)}" for _ in nodes]
    common = ["--object-store-memory=100000000", "--disable-usage-stats"]
    try:
        for i, (mark, arguments) in enumerate(zip(marks, nodes, strict=True)):
            place = [f"--address={address}"] if i else ["--head", f"--port={port}", "--include-dashboard=false"]
            own = [f"--node-ip-address=127.0.0.{i + 2}", *arguments, *common]
            done = subprocess.run([SCRIPT.parent / "ray", "start", *place, *own], capture_output=True, text=True,
                                  env=environment(TTMOE_TEST=mark, **env), timeout=90, check=False)  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
        yield address, marks
    finally:
        for process in itertools.chain.from_iterable(map(marked, marks)):
            process.kill()


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
