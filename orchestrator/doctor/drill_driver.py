"""The driver of a drill: ``ttmoe run`` in a process of its own, and what it says about its experts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.config.store_address import TRACKING_VARIABLE

_STATE = re.compile(r"^  (\w+): (.+)$", re.MULTILINE)
_POLL_SECONDS = 0.1
_END_SECONDS = 3600.0
START_SECONDS = 900.0
"""Longest wait for a change; the first start of workers on a shared file system takes minutes."""


class DrillDriver(Protocol):
    """A running ``ttmoe run`` of a drill."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def wait_for(self, has_come: Callable[[Mapping[str, str]], bool], seconds: float = START_SECONDS) -> bool:
        """Wait for a state of the experts; return False if the driver ends before, or after the time.

        Args:
            has_come: Called with the state of each expert that has begun, as the run prints it, by its task.
            seconds: Longest wait.
        """

    def kill(self) -> None:
        """Kill the driver, and wait for its end."""

    def wait(self) -> int | None:
        """Wait until the driver ends by itself; return its exit code, or None if it does not end."""

    def last_line(self) -> str:
        """Return the last line that it has printed."""


@dataclass(frozen=True)
class DriverProcess:
    """A process of ``ttmoe run``; see ``DrillDriver``.

    Attributes:
        process: The process.
        log: File of its output.
    """

    process: subprocess.Popen
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def wait_for(self, has_come: Callable[[Mapping[str, str]], bool], seconds: float = START_SECONDS) -> bool:
        """Wait for a state of the experts; return False if the driver ends before, or after the time."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            is_running = self.process.poll() is None
            if has_come(dict(_STATE.findall(self.log.read_text(errors="replace")))):
                return True
            if not is_running:
                return False
            time.sleep(_POLL_SECONDS)
        return False

    def kill(self) -> None:
        """Kill the driver, and wait for its end."""
        self.process.kill()
        self.process.wait()

    def wait(self) -> int | None:
        """Wait until the driver ends by itself; return its exit code, or None if it does not end."""
        try:
            return self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def last_line(self) -> str:
        """Return the last line that it has printed."""
        return (self.log.read_text(errors="replace").strip().splitlines() or [""])[-1].strip()


def start_driver(config: Path, log: Path, uri: str | None) -> DriverProcess:
    """Start ``ttmoe run`` in a process.

    Args:
        config: The config file.
        log: File for its output; an existing one is replaced.
        uri: The MLflow store, which the config does not name; None for the one in its storage folder.
    """
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    env.pop(TRACKING_VARIABLE, None)
    if uri:
        env[TRACKING_VARIABLE] = uri  # not an argument: it may contain a password
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(config)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env)
    return DriverProcess(process, log)
