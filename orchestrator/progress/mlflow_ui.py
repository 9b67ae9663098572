"""``ttmoe ui``: MLflow's own pages on the library's store, in the foreground."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from ttmoe.errors import InputError

_HOST = "127.0.0.1"
_START_SECONDS = 120.0
_STOP_SECONDS = 10.0


class MessageSink(Protocol):
    """Where lines for the user go; rich's Console is one."""

    def print(self, text: str) -> None:
        """Show one line."""


def open_ui(root: Path, uri: str, port: int, console: MessageSink) -> None:
    """Serve the store at ``uri`` on ``127.0.0.1:port`` until Ctrl-C or SIGTERM; nothing is left running.

    ``root`` holds the store's ``mlartifacts`` and gets the server's log. A store that is a server already is
    only named. Raises InputError when there is no store, the port is taken, or the server does not come up.
    """
    if uri.startswith(("http://", "https://")):
        console.print(f"MLflow UI: {uri}")
        return
    _check_store(uri)
    _check_port(port)
    with _stop_signals(), (root / "ui.log").open("w") as log:
        server = subprocess.Popen(
            _command(root, uri, port),
            env=_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: Ctrl-C reaches us alone, and we end all of it
        )
        try:
            _wait_healthy(server, port, root / "ui.log")
            console.print(f"MLflow UI: http://{_HOST}:{port}/#/models  (Ctrl-C ends it)")
            if server.wait() != 0:
                raise InputError(f"the MLflow server ended with code {server.returncode}", where=str(root / "ui.log"))
        except KeyboardInterrupt:
            pass
        finally:
            _end_group(server)


def free_port(port: int) -> int | None:
    """The first port from ``port`` on (of a hundred) that nothing listens on, or None."""
    return next((each for each in range(port, min(port + 100, 65536)) if not _is_taken(each)), None)


def _command(root: Path, uri: str, port: int) -> list[str]:
    artifacts = (root / "mlartifacts").absolute().as_uri()
    store = ["--backend-store-uri", uri, "--artifacts-destination", artifacts]
    place = ["--host", _HOST, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *store, *place]


def _environment() -> dict[str, str]:
    # Job execution would start eight more processes of 2.2 GB for features that this project does not use.
    return {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def _check_store(uri: str) -> None:
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.is_file():
        fix = "run a library first (ttmoe run), or name the folder it was run into"
        raise InputError(f"there is no registry at {path} yet", where="storage.root", fix=fix)


def _check_port(port: int) -> None:
    if _is_taken(port):
        free = free_port(port + 1)
        fix = f"use --port {free}" if free else "use another port"
        raise InputError(f"port {port} is in use", where="--port", fix=fix)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return True
    return False


def _wait_healthy(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://{_HOST}:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    said = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise InputError(f"the MLflow server did not come up{': ' + said[0] if said else ''}", where=str(log))


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, also when the server alone has died."""
    for number, patience in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _STOP_SECONDS)):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        _wait_until(lambda: server.poll() is not None and not _group_lives(server.pid), patience)
    server.wait()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP stop us as Ctrl-C does; the handlers that were there come back."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
