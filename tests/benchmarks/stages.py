"""Row ``stages``: what stage 2 costs beside stage 1, and what the router loses to one that takes all rows.

Six tasks, few steps each: the case in which a router could cost more than its experts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.library import BASE, DATA, SPLITS
from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import QUICK, duration
from tests.benchmarks.routing import ALL, SIX, task_entry
from tests.benchmarks.table import Finding, at_most

STEPS, ROWS = (10 if os.environ.get(QUICK) else 60), 32
SHARE, BEHIND = 0.3, 0.2  # goals: of stage 1's time; points of routing accuracy


def run() -> Iterator[Finding]:
    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA):
        yield Finding("stage 2 beside stage 1", "not run", f"set {DATA} to the tasks' folder", "")
        return
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as scratch:
        first = _run(folder, Path(scratch), {})
        every = _run(folder, Path(scratch), {"rows_per_task": 10**5})  # the experts are there
    name = f"six tasks on MiniLM, {STEPS} steps of {ROWS} rows, defaults of the router"
    yield Finding(f"{name}: time of stage 2", duration(first["stage 2"]), f"stage 1 {duration(first['stage 1'])}",
                  *at_most(first["stage 2"] / first["stage 1"], SHARE))  # fmt: skip
    behind = 100 * (every["routing"] - first["routing"])
    yield Finding(f"{name}: routing accuracy", f"{first['routing']:.4f}",
                  f"all rows {every['routing']:.4f}, stage 2 {duration(every['stage 2'])} with features of the first",
                  f"{behind:+.2f} points behind", f"≤ {BEHIND}", round(behind, 2) <= BEHIND)  # fmt: skip


def _run(folder: Path, scratch: Path, router: dict[str, Any]) -> dict[str, float]:
    from orchestrator.registry import Registry

    config = {
        "library": "stages",
        "base": BASE,
        "adapter": {"layers": "2-", "rank": 6, "shape": "48x8|8x48"},
        "train": {"steps": STEPS, "batch_size": ROWS, "eval_every": STEPS // 2},
        "tasks": {task: task_entry(task, folder, scratch, dict.fromkeys(SPLITS, ALL)) for task in SIX},
        "router": router,
    }
    (scratch / "stages.yaml").write_text(yaml.safe_dump(config))
    command = [Path(sys.executable).parent / "ttmoe", "run", "stages.yaml"]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    registry = Registry.open(f"sqlite:///{scratch / 'runs' / 'mlflow.db'}", scratch / "runs" / "mlartifacts")
    version = registry.router("stages")
    assert version is not None
    runs = [registry.client.get_run(expert.run_id).info for expert in registry.experts("stages")]
    router_run = registry.client.get_run(version.run_id).info
    began, ended = min(each.start_time for each in runs), max(each.end_time for each in runs)
    return {
        "stage 1": (ended - began) / 1000,
        "stage 2": (router_run.end_time - router_run.start_time) / 1000,
        "routing": version.metrics["test.routing_accuracy"],
    }
