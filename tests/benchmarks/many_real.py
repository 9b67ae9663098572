"""Row ``many-real``: small experts that train, two steps each on 60 rows: what a worker spends beside the steps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from tests.benchmarks.many import make_experts
from tests.benchmarks.measuring import QUICK, duration
from tests.benchmarks.table import Finding

COUNTS = (20,) if os.environ.get(QUICK) else (400, 1600)
OVERHEAD = 0.15  # goal: seconds of a worker for an expert, without the steps


def run() -> Iterator[Finding]:
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as scratch:
            took = make_experts(scratch, count, "real")
        name, lost = f"{count} small experts on SQLite", count - took["registered"]
        overhead = (took["stage 1"] * took["workers"] - took["steps"]) / count
        said = f"{took['workers']} workers for {duration(took['stage 1'])}, steps {duration(took['steps'])}"
        yield Finding(f"{name}: a worker's time for each, without the steps", duration(overhead), said, "",
                      f"≤ {OVERHEAD} s", overhead <= OVERHEAD)  # fmt: skip
        cpu = [duration(took[part] / count) for part in ("workers_cpu", "driver_cpu")]
        yield Finding(f"{name}: CPU time for each", f"{cpu[0]} of the workers", f"{cpu[1]} of the driver", "")
        memory = ", ".join(f"{start / 1e6:.0f} to {end / 1e6:.0f} MB" for start, end in took["workers_memory"])
        yield Finding(f"{name}: memory of each worker (RSS), after a quarter and at the end", memory, "", "")
        yield Finding(f"{name}: lost", f"{lost:.0f}", f"{took['registered']:.0f} registered", "", "0", lost == 0)
