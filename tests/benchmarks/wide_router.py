"""Row ``wide-router``: the fit of a router on features as wide as those of an 8B model, at two numbers of tasks.

Each task has 5,000 rows of 1,500 characters. The features are random numbers around a point of each task, three hidden
states of width 4,096 in two poolings: what a base computes enters neither time nor memory of the fit. From the two
sizes forty tasks on eight cores are extrapolated: linear in the tasks, and four times as fast.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.machine import ROOT, peak_bytes
from tests.benchmarks.measuring import QUICK, duration
from tests.benchmarks.table import Finding, at_most

TASKS = (1, 2) if os.environ.get(QUICK) else (2, 5)
ROWS, CHARACTERS = 5000, 1500
STATES, WIDTH = (0, 16, 32), 4096
WANTED_TASKS, WANTED_CORES, CORES = 40, 8, 2
MINUTES, BYTES = 10.0, 16 * 10**9  # goals


def run() -> Iterator[Finding]:
    found = {tasks: _measure(tasks) for tasks in TASKS}
    (few, of_few), (many, of_many) = found.items()
    for tasks, each in found.items():
        name = f"router of {tasks} tasks of {ROWS:,} rows, {len(STATES)} states of width {WIDTH:,}, {CORES} cores"
        yield Finding(
            f"{name}: fit, memory at its peak", duration(each["seconds"]), f"{each['bytes'] / 1e9:.2f} GB", ""
        )
    slope = {key: (of_many[key] - of_few[key]) / (many - few) for key in of_few}
    constant = {key: of_few[key] - few * slope[key] for key in of_few}
    growth = of_many["seconds"] / of_few["seconds"]
    yield Finding(f"time of {many} tasks against {few}", f"{growth:.2f} times", f"linear: {many / few:.2f}", "")
    seconds = (constant["seconds"] + WANTED_TASKS * slope["seconds"]) * CORES / WANTED_CORES
    size = constant["bytes"] + WANTED_TASKS * slope["bytes"]
    name = f"{WANTED_TASKS} tasks, extrapolated"
    yield Finding(f"{name}: memory", f"{size / 1e9:.1f} GB", f"{BYTES / 1e9:g} GB", *at_most(size / BYTES, 1))
    yield Finding(f"{name}: time on {WANTED_CORES} cores", duration(seconds), f"{MINUTES:g} min",
                  *at_most(seconds / 60 / MINUTES, 1))  # fmt: skip


def _measure(tasks: int) -> dict[str, float]:
    """Fit a router of so many tasks in a process of its own."""
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as scratch:
        command = [sys.executable, "-m", "tests.benchmarks.wide_router", scratch, str(tasks)]
        subprocess.run([*command, "make"], cwd=ROOT, check=True)
        done = subprocess.run([*command, "fit"], cwd=ROOT, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _main(scratch: Path, tasks: int, step: str) -> None:
    import torch

    from ttmoe.base import Base
    from ttmoe.features import FeatureSpec
    from workers.cache.feature_store import SPLITS, feature_folder, row_counts, write_features
    from workers.data.prepared import prepare_task
    from workers.data.task import Task
    from workers.routing.router_job import RouterJob, run_router
    from workers.training.settings import RouterSettings

    torch.set_num_threads(CORES)
    base = Base("folder", "wide", "", "0" * 64, "", "bfloat16", 512, "last")
    spec, settings = FeatureSpec(STATES, "both"), RouterSettings(rows_per_task=ROWS)
    data, folders = {}, {}
    for number in range(tasks):
        name = f"task{number}"
        task = Task.model_validate({"kind": "text", "source": {"path": str(_texts(scratch, name))},
                                    "columns": {"text": "text"}, "label": {"column": "label"}})  # fmt: skip
        data[name] = prepare_task(name, task, scratch)
        folder = feature_folder(base, data[name], scratch, spec)
        folders[name] = str(folder)
        if step == "make":
            folder.mkdir(parents=True, exist_ok=True)
            draw = torch.Generator().manual_seed(number)
            centre = torch.randn(len(STATES), 2, WIDTH, generator=draw)
            for split in SPLITS:
                count = row_counts(data[name], ROWS)[split]
                rows = 0.1 * centre + torch.randn(count, len(STATES), 2, WIDTH, generator=draw)
                write_features(folder, split, torch.nn.functional.normalize(rows, dim=-1).half(), spec)
    if step == "fit":
        job = RouterJob(base, spec, data, folders, {}, settings, 0, "0" * 64, str(scratch / "router"))
        started = time.monotonic()
        result = run_router(job, threads=CORES, report=lambda progress: None)
        seconds = time.monotonic() - started
        print(json.dumps({"seconds": seconds, "bytes": peak_bytes(), **result.metrics}))


def _texts(scratch: Path, name: str) -> Path:
    """Write a task's rows once: words of which a third are the task's own."""
    path = scratch / f"{name}.jsonl"
    if not path.exists():
        draw = random.Random(name)
        words = [f"{draw.randrange(10**6):06}" for _ in range(2000)]
        own = [f"{name}{word}" for word in words[:200]]
        lines = []
        for number in range(ROWS):
            text = ""
            while len(text) < CHARACTERS:
                text += f" {draw.choice(own if draw.random() < 1 / 3 else words)}"
            lines.append(json.dumps({"text": text[1:], "label": "ab"[number % 2]}))
        path.write_text("\n".join(lines))
    return path


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
