"""Row ``front``: the expert that ``ttmoe tune`` recommends, against LoRA of rank 16 on the same layers, on MiniLM.

A search sees the training and the validation split alone, and may recommend what has at most 8 % of the parameters of
LoRA-16. Of three learning rates, the mean validation accuracy over the seeds chooses LoRA's for each task. Then both
are trained by the jobs of ``ttmoe run`` on the config that ``--apply`` writes, which read the test split once.

A cell is one search or one training, with a result file in ``runs/benchmarks/front``; what is stopped goes on. To
measure anew, remove the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.cells import run_cells
from tests.benchmarks.library import BASE, DATA, SPLITS
from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import QUICK, duration
from tests.benchmarks.routing import ALL, task_entry
from tests.benchmarks.table import Finding, at_most

STEPS = {"trec": 20} if os.environ.get(QUICK) else {"trec": 200, "mrpc": 60, "sst2": 100, "banking77": 100}
SEEDS = (0,) if os.environ.get(QUICK) else (0, 1, 2)
RANKS = [1, 2, 3, 4, 5, 8, 16]  # up to 5 has at most the share of LoRA's parameters that is allowed
LORA = {"method": "lora", "rank": 16, "alpha": 16, "layers": "2-"}
LORA_PARAMETERS = 98_304
LORA_RATES = (1e-3, 3e-3, 1e-2)
SHARE, BEHIND, MINUTES = 0.08, 0.5, 20.0  # goals: of LoRA's parameters, points of test accuracy, for each search


@dataclass(frozen=True)
class Cell:
    """A search if there is nothing to train; else a training of ``sections``, on all splits or as a trial."""

    task: str
    seed: int
    name: str
    sections: Any = field(default=None, compare=False)
    tested: bool = False

    @property
    def file(self) -> str:
        return f"{self.task}-{self.seed}-{self.name}.json"


def run() -> Iterator[Finding]:
    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA) or not (folder / "trec").is_dir():
        yield Finding("recommended points", "not run", f"set {DATA} to the tasks' folder", "")
        return
    scratch = ROOT / "runs" / "benchmarks" / ("front-quick" if os.environ.get(QUICK) else "front")
    scratch.mkdir(parents=True, exist_ok=True)
    measure = partial(_run, folder=folder, scratch=scratch)
    pairs = [(task, seed) for task in STEPS for seed in SEEDS]
    # A search has the machine's cores, so there is one at a time.
    searches = run_cells([Cell(task, seed, "search") for task, seed in pairs], measure, scratch, processes=1)
    winners = {(cell.task, cell.seed): found["winner"] for cell, found in searches.items()}
    tried = run_cells([_lora(task, seed, rate) for task, seed in pairs for rate in LORA_RATES], measure, scratch)
    rates = {task: max(LORA_RATES, key=lambda rate, task=task: _quality(tried, task, rate)) for task in STEPS}
    chosen = [Cell(task, seed, "chosen", winners[task, seed]["sections"], tested=True) for task, seed in pairs]
    loras = [_lora(task, seed, rates[task], tested=True) for task, seed in pairs]
    tested = run_cells([*chosen, *loras], measure, scratch)
    for task in STEPS:
        ours, peer = ([tested[cell]["test"] for cell in cells if cell.task == task] for cells in (chosen, loras))
        behind = 100 * (fmean(peer) - fmean(ours))
        sizes = [winners[task, seed]["parameters"] for seed in SEEDS]
        share = max(sizes) / LORA_PARAMETERS
        name = f"{task}, {STEPS[task]} steps, {len(SEEDS)} seeds"
        yield Finding(f"{name}: test accuracy of the recommended point against LoRA-16", _listed(ours),
                      f"{_listed(peer)}, rate {rates[task]:g}", f"{behind:+.2f} points behind",
                      f"≤ {BEHIND}", round(behind, 2) <= BEHIND)  # fmt: skip
        yield Finding(f"{name}: its parameters", ", ".join(f"{size:,}" for size in sizes), f"{LORA_PARAMETERS:,}",
                      *at_most(share, SHARE))  # fmt: skip
        longest = max(found["seconds"] for cell, found in searches.items() if cell.task == task)
        trials = max(found["trials"] for cell, found in searches.items() if cell.task == task)
        yield Finding(f"{name}: longest search, {trials} trials at most", duration(longest), "", "",
                      f"≤ {MINUTES:g} min", longest <= 60 * MINUTES)  # fmt: skip
    hours = sum(found["seconds"] for found in (*searches.values(), *tried.values(), *tested.values())) / 3600
    yield Finding("hours, all cells", f"{hours:.2f}", "", "")


def _listed(values: list[float]) -> str:
    return f"{fmean(values):.4f} ({', '.join(f'{value:.3f}' for value in values)})"


def _lora(task: str, seed: int, rate: float, *, tested: bool = False) -> Cell:
    return Cell(task, seed, f"lora-{rate:g}{'-tested' if tested else ''}",
                {"adapter": LORA, "train": {"lr": rate}}, tested)  # fmt: skip


def _quality(tried: dict[Cell, dict[str, Any]], task: str, rate: float) -> tuple[float, float]:
    found = [tried[_lora(task, seed, rate)] for seed in SEEDS]
    return fmean(each["accuracy"] for each in found), -fmean(each["loss"] for each in found)


def _config(cell: Cell, folder: Path, scratch: Path) -> dict[str, Any]:
    steps = STEPS[cell.task]
    task = task_entry(cell.task, folder, scratch, dict.fromkeys(SPLITS, ALL)) | (cell.sections or {})
    return {
        "library": "front",
        "base": BASE,
        "adapter": {"layers": "2-", "rank": 4, "shape": "48x8|8x48"},
        "train": {"lr": 5e-3, "steps": steps, "batch_size": 32, "eval_every": 50, "patience": 0,
                  "seed": 100 * cell.seed},
        "tasks": {cell.task: task},
        "search": {"task": cell.task, "method": "truncate", "ranks": RANKS, "steps": steps, "budget": {"trials": 2},
                   "references": [], "max_parameters": int(SHARE * LORA_PARAMETERS)},
        "storage": {"root": str(scratch / f"{cell.task}-{cell.seed}"), "cache": str(ROOT / "runs" / "cache")},
    }  # fmt: skip


def _run(cell: Cell, folder: Path, scratch: Path) -> dict[str, Any]:
    if cell.sections is None:
        return _search(_config(cell, folder, scratch))
    from dataclasses import replace

    from orchestrator.config.loading import load_config
    from orchestrator.plan.planning import make_plan
    from workers.expert_runner import run_expert
    from workers.tuning.trial_job import TrialJob, run_trials

    plan = make_plan(load_config(_config(cell, folder, scratch)).config)
    job = replace(plan.experts[cell.task].job, folder=str(scratch / cell.file.removesuffix(".json")))
    if cell.tested:
        found = run_expert(job, lambda progress: None).metrics
        return {"test": found["test.accuracy"], "validation": found["validation.accuracy"]}
    (trial,) = run_trials([TrialJob(job, STEPS[cell.task])], lambda progress: None).values()
    return {"accuracy": trial.accuracy, "loss": trial.loss}


def _search(config: dict[str, Any]) -> dict[str, Any]:
    from rich.console import Console

    from orchestrator.api import tune

    (record,) = tune(config, console=Console(stderr=True)).tasks
    front = [{"parameters": each["parameters"], "accuracy": each["accuracy"]} for each in record["front"]]
    return {"winner": record["winner"], "front": front, "references": record["references"],
            "trials": len(record["trials"]) + len(record["references"])}  # fmt: skip
