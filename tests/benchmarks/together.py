"""Row ``together``: eight experts trained in one process, in mixed batches, against eight processes of one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.nn import functional as F

from tests.benchmarks import models
from tests.benchmarks.machine import ROOT, peak_bytes
from tests.benchmarks.measuring import BUSY, QUICK, clock, duration
from tests.benchmarks.table import Finding, at_most

EXPERTS, ROWS, TOKENS, STEPS, CLASSES = 8, 4, 64, 6, 4
AT_ONCE = 2  # experts in one forward; a step's gradients add up over its forwards, and activations are held for one
ROUNDS = 1 if os.environ.get(QUICK) else 2


def run() -> Iterator[Finding]:
    rounds = [(_together(), _apart()) for _ in range(ROUNDS)]
    one, eight = (_medians([pair[i] for pair in rounds]) for i in range(2))
    what = f"{EXPERTS} experts on SmolLM2 in one process, {STEPS} steps of {ROWS} x {TOKENS} tokens each"
    ratio = {key: statistics.median(a[key] / b[key] for a, b in rounds) for key in one}
    yield Finding(f"{what}: training alone", duration(one["training"]),
                  f"{EXPERTS} processes, two at a time {duration(eight['training'])}",
                  *at_most(ratio["training"], 1.0))  # fmt: skip
    yield Finding(f"{what}: with the start of the processes, wall time", duration(one["whole"]),
                  f"the same {duration(eight['whole'])}", *at_most(ratio["whole"], 1.0))  # fmt: skip
    yield Finding(f"{what}: memory (peak)", f"{one['memory'] / 2**20:.0f} MiB",
                  f"sum of the {EXPERTS} processes {eight['memory'] / 2**20:.0f} MiB",
                  *at_most(ratio["memory"], 0.25))  # fmt: skip
    yield Finding(f"{what}: private memory (pages of files not counted)", f"{one['private'] / 2**20:.0f} MiB",
                  f"sum of the {EXPERTS} processes {eight['private'] / 2**20:.0f} MiB",
                  *at_most(ratio["private"], 0.25))  # fmt: skip


def _medians(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


def _together() -> dict[str, float]:
    began = time.perf_counter()
    found = _process(EXPERTS, 0, 1 if os.environ.get(BUSY) else os.cpu_count() or 1)
    return {"whole": time.perf_counter() - began, **found}


def _apart() -> dict[str, float]:
    """Two at a time, each with half of the cores. Training: the time that both were at it, start-up left out."""
    began, threads = time.perf_counter(), max(1, (os.cpu_count() or 2) // 2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: _process(1, seed, threads), range(EXPERTS)))
    total = {key: sum(each[key] for each in found) for key in found[0]}
    side_by_side = 1 if os.environ.get(BUSY) else 2  # CPU time adds up, wall time passes for two at once
    return {"whole": time.perf_counter() - began, **total, "training": total["training"] / side_by_side}


def _process(experts: int, seed: int, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.together", str(experts), str(seed), str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def train(experts: int, seed: int, threads: int) -> dict[str, float]:
    """Train ``experts`` in mixed batches; each gets ``ROWS`` rows in each of ``STEPS`` steps."""
    torch.set_num_threads(threads)
    bank, names = models.bank(), [f"e{seed + i}" for i in range(experts)]
    drafted = [bank.add(name, models.SPEC, CLASSES, torch.Generator().manual_seed(seed)) for name in names]
    optimizer = torch.optim.AdamW([p for expert in drafted for p in expert.parameters()], lr=1e-3, foreach=True)
    parts = [[name for name in names[i : i + AT_ONCE] for _ in range(ROWS)] for i in range(0, experts, AT_ONCE)]
    bank.train()
    began = clock()
    for step in range(STEPS):
        optimizer.zero_grad()
        for rows in parts:
            scores = bank(models.batch(len(rows), TOKENS, step), rows if experts > 1 else names[0])
            labels = torch.arange(len(rows)) % CLASSES
            loss = F.cross_entropy(scores, labels, reduction="sum") / ROWS
            loss.backward()
            loss.item()
        optimizer.step()
    seconds, peak = clock() - began, peak_bytes()
    return {"training": seconds, "memory": peak, "private": peak - _file_pages()}


def _file_pages() -> int:
    """Bytes of mapped files (libraries) this process holds now, which processes share; zero where unknown."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


if __name__ == "__main__":
    print(json.dumps(train(*map(int, sys.argv[1:]))))
