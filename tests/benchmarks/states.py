"""Row ``states``: routers that read the hidden states of ``router.layers: auto``, against routers of all, on SmolLM2.

Seventeen tasks, 400 training rows of each, three seeds; the surface of the texts is left out, so that only the states
differ. What a router reads is chosen on no rows: the states are evenly spaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

import torch

from orchestrator.config.schema import Config
from orchestrator.plan.planning import Plan, make_plan
from tests.benchmarks.library import DATA
from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import QUICK
from tests.benchmarks.routing import SEVENTEEN, SIX, SMOLLM2, task_entry
from tests.benchmarks.table import Finding
from ttmoe.features import ALL_STATES, FeatureSpec
from workers.cache.feature_store import compute_features, load_features
from workers.routing.mixture import Mixture
from workers.routing.router_training import fit_router
from workers.training.settings import RouterSettings

ROWS = {"train": 400, "validation": 80, "test": 200}
SEEDS = (0, 1, 2)
BEHIND = 0.2  # goal: points of accuracy on test rows


def run() -> Iterator[Finding]:
    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA) or not (folder / SIX[0]).is_dir():
        yield Finding("hidden states of a router", "not run", f"set {DATA} to the tasks' folder", "")
        return
    scratch = ROOT / "runs" / "benchmarks" / "states"
    scratch.mkdir(parents=True, exist_ok=True)
    tasks = SIX[:2] if os.environ.get(QUICK) else SEVENTEEN
    config = Config.model_validate({
        "library": "states",
        "base": SMOLLM2.base,
        "tasks": {task: task_entry(task, folder, scratch, ROWS) for task in tasks},
        "router": {"surface": "none", "unknown": 0, "rows_per_task": ROWS["train"]},
        "storage": {"root": str(scratch), "cache": str(ROOT / "runs" / "cache")},
    })  # fmt: skip
    plan = make_plan(config)
    files = {
        task: compute_features(plan.base, expert.job.data, ROWS["train"], plan.folders.cache, device="cpu",
                               threads=torch.get_num_threads(), report=lambda progress: None, splits=tuple(ROWS))
        for task, expert in plan.experts.items()
    }  # fmt: skip
    accuracy = {spec: _accuracy(plan, files, spec, config.router) for spec in (plan.features, ALL_STATES)}
    auto, every = accuracy.values()
    behind = 100 * (fmean(every) - fmean(auto))
    read = ", ".join(map(str, plan.features.layers))
    name = f"router of {len(tasks)} tasks on SmolLM2, hidden states {read}: accuracy on test rows"
    yield Finding(name, _listed(auto), f"all 31 states {_listed(every)}", f"{behind:+.2f} points behind", f"≤ {BEHIND}",
                  round(behind, 2) <= BEHIND)  # fmt: skip


def _accuracy(plan: Plan, files: Mapping[str, Path], spec: FeatureSpec, settings: RouterSettings) -> list[float]:
    train, validation, test = (_load(plan, files, spec, split) for split in ROWS)
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        router = fit_router(tuple(files), train, validation, spec, settings, lambda progress: None)
        found.append(float((router.choose(test.scores(router)) == test.labels).float().mean()))
    return found


def _load(plan: Plan, files: Mapping[str, Path], spec: FeatureSpec, split: str) -> Mixture:
    counts = {task: min(ROWS[split], plan.experts[task].job.data.rows[split]) for task in files}
    parts = (load_features(files[task], split, count, spec) for task, count in counts.items())
    return Mixture.from_tasks(parts, list(counts.values()))


def _listed(values: list[float]) -> str:
    return f"{fmean(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"
