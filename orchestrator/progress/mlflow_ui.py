"""``ttmoe ui``: serve MLflow's UI on the store of a library, in the foreground."""

from __future__ import annotations

import json
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
from typing import Any, Protocol
from urllib.parse import quote

from orchestrator.config.store_address import StoreAddress, split_credentials, sqlite_file
from ttmoe.errors import InputError

_HOST = "127.0.0.1"
_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_EXPERTS_VIEW = "mlflow.sharedViewState.experts"  # an experiment's tag, written by orchestrator.registry.pages
_MOST_LISTED = 5  # libraries


class MessageSink(Protocol):
    """Prints messages for the user; rich's ``Console`` is one."""

    def print(self, text: str, *, soft_wrap: bool = False, markup: bool = True) -> None:
        """Print one line; with ``soft_wrap`` a long one is not broken, and without ``markup`` brackets are text."""


def open_ui(store: StoreAddress, port: int, console: MessageSink) -> None:
    """Serve a store on ``127.0.0.1:port`` until Ctrl-C or SIGTERM, then end all processes of the server.

    Args:
        store: The store. If it is an MLflow server, only its address is printed. The log ``ui.log`` of a server that
            is started is written to the storage root.
        port: Port to listen on.
        console: Where to print the address.

    Raises:
        InputError: If there is no store, the port is in use, or the server does not start.
    """
    if store.uri.startswith(("http://", "https://")):
        console.print(f"MLflow UI: {split_credentials(store.uri)[0]}", soft_wrap=True, markup=False)
        return
    if store.is_missing:
        fix = "run a library first (ttmoe run), or name its folder with --root"
        raise InputError("there is no MLflow store here", where=str(store), fix=fix)
    _check_port(port)
    store.root.mkdir(parents=True, exist_ok=True)
    log_file = store.root / "ui.log"
    with _stop_on_signals(), log_file.open("w") as log:
        server = subprocess.Popen(
            _command(store.artifacts, port),
            **_place(store.uri),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own, so that Ctrl-C reaches only this process
        )
        try:
            _wait_healthy(server, port, log_file)
            console.print(f"MLflow UI: http://{_HOST}:{port}/#/models  (Ctrl-C ends it)")
            for library, link in _expert_pages(port):
                console.print(f"experts of {library}: {link}", soft_wrap=True, markup=False)
            if server.wait() != 0:
                raise InputError(f"the MLflow server ended with code {server.returncode}", where=str(log_file))
        except KeyboardInterrupt:
            pass
        finally:
            _stop_group(server)


def free_port(port: int) -> int | None:
    """Return the first unused port of the hundred from ``port`` on; None if all are in use."""
    return next((number for number in range(port, min(port + 100, 65536)) if not _is_used(number)), None)


def _command(artifacts: Path, port: int) -> list[str]:
    place = ["--host", _HOST, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", "--artifacts-destination", artifacts.as_uri(), *place]


def _place(uri: str) -> dict[str, Any]:
    """Return the environment of the server, and its folder: MLflow would create a second one for a path with ``%``."""
    file = sqlite_file(uri)
    if file is None or "%" not in str(file.parent):
        return {"env": _environment(uri)}
    return {"env": _environment(f"sqlite:///{quote(file.name)}"), "cwd": file.parent}


def _environment(uri: str) -> dict[str, str]:
    return {
        **os.environ,
        # Not an argument, because every user of the machine can list those, and the URI may contain a password.
        "MLFLOW_BACKEND_STORE_URI": uri,
        # Job execution would start eight more processes (2.2 GB) for features that ttmoe does not use.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _check_port(port: int) -> None:
    if _is_used(port):
        free = free_port(port + 1)
        fix = f"use --port {free}" if free else "use another port"
        raise InputError(f"port {port} is in use", where="--port", fix=fix)


def _is_used(port: int) -> bool:
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
    last_line = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise InputError(f"the MLflow server did not start{': ' + last_line[0] if last_line else ''}", where=str(log))


def _expert_pages(port: int) -> list[tuple[str, str]]:
    """Return the newest libraries in the store, each with the address of the table of its experts."""
    body = json.dumps({"max_results": 1000, "order_by": ["last_update_time DESC"]}).encode()
    address = f"http://{_HOST}:{port}"
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            experiments = json.load(response).get("experiments", [])
    except (OSError, ValueError):  # the links are a convenience; the server runs
        return []
    # A library that only earlier versions of ttmoe have run has no such view, and MLflow would show an error.
    listed = [entry for entry in experiments if any(tag["key"] == _EXPERTS_VIEW for tag in entry.get("tags", []))]
    page = "runs?workflowType=machine_learning&viewStateShareKey=experts"
    return [
        (entry["name"], f"{address}/#/experiments/{entry['experiment_id']}/{page}") for entry in listed[:_MOST_LISTED]
    ]


def _stop_group(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, even if the server itself has already ended."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, signal_number)
        except ProcessLookupError:
            break
        _wait_until(lambda: server.poll() is not None and not _group_exists(server.pid), _STOP_SECONDS)
    server.wait()


def _group_exists(group: int) -> bool:
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
def _stop_on_signals() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C inside this context, then restore the previous handlers."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
