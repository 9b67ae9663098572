"""Running the console script as a user does, and reading what it left in the registry."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny

SCRIPT = Path(sys.executable).parent / "ttmoe"


# Would lead a command to another cluster or store. A Ray session of this process sets its mode of authentication.
ELSEWHERE = ("RAY_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI", "TTMOE_BASE")


def environment(**more: str) -> dict[str, str]:
    """This process's, without ELSEWHERE."""
    kept = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    return {**kept, "COLUMNS": "160", **more}


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it left running."""

    code: int
    out: str
    err: str
    running: list[str]


def ttmoe(folder: Path, *arguments: str, timeout: float = 600) -> Done:
    """``ttmoe ARGUMENTS`` in ``folder``, until it ends. The time-out guards against a hang alone."""
    mark = f"ttmoe-{uuid.uuid4()}"
    done = subprocess.run([SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout,
                          env=environment(TTMOE_TEST=mark), check=False)  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr, tiny.left_running(mark))


def here(folder: Path, *arguments: str) -> Done:
    """Return how the command ends in this process, which has imported torch, MLflow and Ray: seconds less each time."""
    from typer.testing import CliRunner

    from orchestrator.cli import app

    mark = f"ttmoe-{uuid.uuid4()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ELSEWHERE:
            patch.setenv(name, "")  # so that a value that the command sets is undone
            patch.delenv(name)
        patch.setenv("TTMOE_TEST", mark)
        patch.setenv("COLUMNS", "160")
        result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr, tiny.left_running(mark))


def succeeded(done: Done) -> Done:
    """The same, if the command succeeded and ended whole."""
    assert done.code == 0, f"{done.out}\n{done.err}"
    assert done.running == []
    assert "Traceback" not in done.err
    assert "Warning" not in done.out + done.err
    return done


def cells(out: str, first: str) -> list[str]:
    """The cells of the one row, of the tables in ``out``, that begins with ``first``."""
    rows = [re.split(r"\s{2,}|\s*│\s*", line.strip(" │")) for line in out.splitlines()]
    (row,) = [row for row in rows if row[0] == first and len(row) > 1]
    return row


def open_registry(root: Path) -> Any:
    """The registry of the runs below ``root``."""
    from orchestrator.registry import Registry

    return Registry.open(f"sqlite:///{root / 'mlflow.db'}", root / "mlartifacts")


def versions(root: Path) -> dict[str, int]:
    """How many versions each registered model has."""
    client = open_registry(root).client
    return dict(Counter(found.name for found in client.search_model_versions()))


def runs(root: Path) -> list[Any]:
    """Every MLflow run."""
    client = open_registry(root).client
    ids = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(ids, max_results=1000))


def statuses(root: Path) -> Counter[tuple[str, str]]:
    """How many runs of each kind ended how."""
    return Counter((run.data.tags.get("ttmoe.kind", ""), run.info.status) for run in runs(root))
