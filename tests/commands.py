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

import tiny

SCRIPT = Path(sys.executable).parent / "ttmoe"


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would lead a command to another cluster or store."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "COLUMNS")}
    return {**kept, "COLUMNS": "160", **more}


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it left running."""

    code: int
    out: str
    err: str
    running: list[str]


def ttmoe(folder: Path, *arguments: str, timeout: float = 240) -> Done:
    """``ttmoe ARGUMENTS`` in ``folder``, until it ends."""
    mark = f"ttmoe-{uuid.uuid4()}"
    done = subprocess.run([SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout,
                          env=environment(TTMOE_TEST=mark), check=False)  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr, tiny.left_running(mark))


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
