"""Row ``many``: a thousand experts through the driver, without their training: what the library itself costs.

Each writes its files and 100 KB beside them, in worker processes on Ray, and is registered in SQLite.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import QUICK, duration
from tests.benchmarks.table import Finding

COUNT = 100 if os.environ.get(QUICK) else 1000
AN_EXPERT, MEMORY = 0.25, 200  # goals: seconds, MB
SCRIPT = Path(sys.executable).parent / "ttmoe"


def run() -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as scratch:
        first, again = make_experts(scratch, COUNT), make_experts(scratch, COUNT)
        reading = {command: _ttmoe(scratch, command) for command in ("experts ls", "status", "plan many.yaml")}
    name = f"{COUNT} scripted experts on SQLite"
    each, megabytes = first["stage 1"] / COUNT, first["grown"] / 1e6
    planning = ("load_config", "make_plan", "open", "hold", "check_feasible", "forecast")
    lost = COUNT - first["registered"] + again["todo"]
    yield Finding(f"{name}: lost", f"{lost:.0f}", f"{first['registered']:.0f} registered", "", "0", lost == 0)
    yield Finding(f"{name}: wall time of stage 1, an expert", duration(each), f"all {duration(first['stage 1'])}", "",
                  f"≤ {AN_EXPERT} s", each <= AN_EXPERT)  # fmt: skip
    yield Finding(f"{name}: memory that the driver gains (RSS)", f"{megabytes:.0f} MB", "", "",
                  f"< {MEMORY} MB", megabytes < MEMORY)  # fmt: skip
    for what, took in (("planning them", first), ("planning again, all cached", again)):
        seconds = {part: took[part] for part in planning}
        longest = sorted(seconds, key=lambda part: -seconds[part])[:3]
        yield Finding(f"{name}: {what}", duration(sum(seconds.values())),
                      ", ".join(f"{part} {duration(seconds[part])}" for part in longest), "")  # fmt: skip
    said = ", ".join(f"`{command}` {duration(seconds)}" for command, seconds in reading.items())
    yield Finding(f"{name}: commands that read, start-up included", said, "", "")


def make_experts(folder: str, count: int, *words: str) -> dict[str, Any]:
    """Run ``tests/scripted_jobs.py`` in a process of its own; what it prints."""
    done = subprocess.run([sys.executable, ROOT / "tests" / "scripted_jobs.py", folder, str(count), *words], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def _ttmoe(folder: str, words: str) -> float:
    began = time.perf_counter()
    subprocess.run([SCRIPT, *words.split()], cwd=folder, capture_output=True, check=True)
    return time.perf_counter() - began
