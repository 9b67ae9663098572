"""Row ``trials``: what a trial of a search costs beside its training, against Ray Tune with a process for each trial.

Both train points of TREC on MiniLM, 100 steps of 32 rows each, as many at a time as there are cores. Tune's trials are
processes that load the base and tokenise the rows, and have no states of the trunk; ours are two searches on one pool,
of which the second finds warm workers. A thousand trials that train nothing go through the search before: the driver's
processor time and memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.library import BASE, DATA, SPLITS
from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import QUICK, duration
from tests.benchmarks.routing import ALL, task_entry
from tests.benchmarks.table import Finding

TRIALS, STEPS, SCRIPTED = (4, 20, 100) if os.environ.get(QUICK) else (16, 100, 1000)
BESIDE, DRIVER, FASTER = 0.2, 0.05, 3.0  # goals: seconds of a worker, seconds of the driver, times as many an hour


def run() -> Iterator[Finding]:
    yield from _scripted()
    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA) or not (folder / "trec").is_dir():
        yield Finding("trials of TREC", "not run", f"set {DATA} to the tasks' folder", "")
        return
    with tempfile.TemporaryDirectory() as scratch:
        ours = _in_a_process("ours", folder, Path(scratch, "ours"))
        peer = _in_a_process("peer", folder, Path(scratch, "peer"), ours["points"])
    name = f"{TRIALS} trials of TREC on MiniLM, {STEPS} steps each"
    beside = (ours["warm"] * ours["workers"] - ours["training"]) / TRIALS
    rates = 3600 * TRIALS / ours["seconds"], 3600 * TRIALS / peer["seconds"]
    yield Finding(f"{name}: trials an hour, start-up included", f"{rates[0]:.0f}",
                  f"Ray Tune, a process each: {rates[1]:.0f}", f"{rates[0] / rates[1]:.2f}", f"≥ {FASTER:g}",
                  rates[0] / rates[1] >= FASTER)  # fmt: skip
    yield Finding(f"{name}: seconds of a warm worker beside the training, for each", duration(beside),
                  f"{ours['workers']} workers for {duration(ours['warm'])}, training {duration(ours['training'])}",
                  "", f"≤ {BESIDE} s", beside <= BESIDE)  # fmt: skip


def _scripted() -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as scratch:
        line = [sys.executable, "-W", "ignore", ROOT / "tests" / "scripted_trials.py", f"{scratch}/many", str(SCRIPTED)]
        took = _json_of(subprocess.run(line, capture_output=True, text=True, check=False, cwd=scratch))
    name = f"{SCRIPTED} scripted trials on SQLite"
    each, lost = took["driver_cpu"] / SCRIPTED, SCRIPTED - took["unique"]
    yield Finding(f"{name}: processor time of the driver for each", duration(each),
                  f"wall time of all {duration(took['seconds'])}", "", f"≤ {DRIVER} s", each <= DRIVER)  # fmt: skip
    yield Finding(f"{name}: memory that the driver gains (RSS)", f"{took['grown'] / 1e6:.0f} MB", "", "")
    yield Finding(f"{name}: lost or made twice", f"{lost}", f"{took['trials']} recorded", "", "0", lost == 0)


def _in_a_process(side: str, data: Path, folder: Path, points: Any = None) -> dict[str, Any]:
    folder.mkdir()
    line = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.trials", side, str(data), json.dumps(points)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return _json_of(subprocess.run(line, capture_output=True, text=True, check=False, cwd=folder, env=environment))


def _json_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _config(data: Path, trials: int = TRIALS, steps: int = STEPS) -> dict[str, Any]:
    return {
        "library": "trials",
        "base": BASE,
        "adapter": {"layers": "2-", "rank": 8, "alpha": 8},
        "tasks": {"trec": task_entry("trec", data, Path.cwd(), dict.fromkeys(SPLITS, ALL))},
        "train": {"batch_size": 32, "lr": 5e-3, "eval_every": 50},
        "search": {
            "task": "trec",
            "method": "random",
            "trials": trials,
            "steps": steps,
            "ranks": [1, 2, 4, 8],
        },
        "storage": {"cache": str(ROOT / "runs" / "cache")},
    }


def _ours(data: Path) -> dict[str, Any]:
    """Make a short search of a trial for each core, and then the search by the same workers."""
    from rich.console import Console

    from cluster.local import ray_session
    from orchestrator.config.loading import load_config
    from orchestrator.plan.forecast import trial_resources
    from orchestrator.plan.planning import make_plan
    from orchestrator.pool.worker_pool import WorkerPool
    from orchestrator.progress.live_view import LiveView
    from orchestrator.registry import Registry
    from orchestrator.search.tuning import run_search

    config = load_config(_config(data)).config
    plan = make_plan(config)
    cores = len(os.sched_getaffinity(0))
    first = make_plan(load_config(_config(data, cores, STEPS // 10)).config)
    registry = Registry.open(config.store.uri, plan.folders.artifacts)
    began = time.perf_counter()
    with (
        ray_session(),
        LiveView(Console(quiet=True)) as view,
        WorkerPool(trial_resources(plan), config.failures) as pool,
    ):
        run_search(first, registry, view, pool)
        warm = time.perf_counter()
        (record,) = run_search(plan, registry, view, pool)
        ended = time.perf_counter()
    training = sum(trial["seconds"] for trial in record.trials)
    points = [trial["point"] for trial in record.trials]
    return {"seconds": ended - began, "warm": ended - warm, "training": training, "workers": pool.started,
            "points": points}  # fmt: skip


def _peer(data: Path, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Train the same points by Ray Tune, each in a process of its own that loads the base."""
    from ray import tune

    from cluster.local import ray_session
    from orchestrator.config.loading import load_config
    from orchestrator.plan.planning import make_plan
    from orchestrator.plan.space import plan_space
    from orchestrator.search.trial_units import TaskTrials

    plan = make_plan(load_config(_config(data)).config)
    trials = TaskTrials(plan, "trec", plan_space(plan, "trec"), (STEPS,), Path.cwd() / "trials")
    made = [trials.job(trials.make(number, point, "sampled"), STEPS) for number, point in enumerate(points)]
    jobs = [replace(job, expert=replace(job.expert, cache="", trunk_bytes=0, trainings=1)) for job in made]

    def train(config: dict[str, Any]) -> None:
        from workers.tuning.trial_job import run_trials

        job = jobs[config["number"]]
        tune.report(vars(run_trials([job], lambda progress: None)[job.expert.task]))

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    began = time.perf_counter()
    with ray_session():
        space = {"number": tune.grid_search(list(range(len(jobs))))}
        run_config = tune.RunConfig(storage_path=str(Path.cwd()), verbose=0)
        results = tune.Tuner(train, param_space=space, run_config=run_config).fit()
    seconds = time.perf_counter() - began
    assert not results.errors, results.errors
    return {"seconds": seconds}


if __name__ == "__main__":
    side, where, given = sys.argv[1:]
    print(json.dumps(_ours(Path(where)) if side == "ours" else _peer(Path(where), json.loads(given))))
