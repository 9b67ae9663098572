"""An MLflow server as its administrator would start it."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import tiny
from proxy import free_port


class Server:
    """An MLflow server on SQLite that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.port, self.log = free_port(), (folder / "server.log").open("w")
        self.command = [
            sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port), "--backend-store-uri",
            f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts"),
        ]  # fmt: skip

    def start(self) -> None:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(self.command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)
        assert tiny.wait_for(self._responds, 90)

    def stop(self, grace: float = 20) -> None:
        """End the server; its requests have ``grace`` seconds to end."""
        family = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.terminate()
        for process in psutil.wait_procs(family, timeout=grace)[1]:  # it waits for some that will not end
            process.kill()
        self.process.wait()

    def _responds(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
        except OSError:
            return False
        return True
