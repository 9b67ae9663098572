"""Row ``truncation``: every rank from one training, against one training for each rank, on MiniLM.

A tensor train is trained at each rank with each of three learning rates; of these, the mean validation accuracy over
the seeds chooses one for each task and rank. The expert of the highest rank, which is such a training, is cut to the
others by ``workers.tuning``; each cut that has lost something is distilled, and keeps what does better on validation.
The test rows are read once, by what was chosen.

A cell is one training, the cuts of one expert, or one reading of test rows. Each has a result file in
``runs/benchmarks/truncation``; what is stopped goes on. To measure anew, remove the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.cells import run_cells
from tests.benchmarks.library import BASE, DATA, SPLITS
from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import QUICK
from tests.benchmarks.routing import ALL, task_entry
from tests.benchmarks.table import Finding, at_most

TASKS = ("trec", "mrpc", "sst2", "banking77")
SEEDS = (0, 1, 2)
RANKS = (16, 8, 4, 2, 1)
STEPS = 200
RATES = (0.5, 1.0, 2.0)  # times 1e-2 over the root of the rank, which fitted trec
MEAN_GOALS = {8: 0.3, 4: 0.3, 2: 0.5}  # points that the cuts of a rank may be behind, in the mean over tasks and seeds
TASK_GOAL = 1.0  # the same of one task, in the mean over seeds


@dataclass(frozen=True)
class Plan:
    """What is measured: all of it, or a part to try the code out."""

    tasks: Sequence[str] = TASKS
    seeds: Sequence[int] = SEEDS
    ranks: Sequence[int] = RANKS
    rates: Sequence[float] = RATES
    steps: int = STEPS


@dataclass(frozen=True)
class Cell:
    """One training, or the cuts of what it trained if there are ``ranks``."""

    task: str
    rank: int
    seed: int
    rate: float
    steps: int
    ranks: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.task}-{self.steps}-{self.rank}-{self.seed}-{self.rate:g}"

    @property
    def file(self) -> str:
        return f"{self.name}{'-cut' if self.ranks else ''}.json"


def run() -> Iterator[Finding]:
    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA) or not (folder / TASKS[0]).is_dir():
        yield Finding("every rank from one training", "not run", f"set {DATA} to the tasks' folder", "")
        return
    scratch = ROOT / "runs" / "benchmarks" / "truncation"
    scratch.mkdir(parents=True, exist_ok=True)
    plan = Plan(TASKS[:1], SEEDS[:1], (16, 2), RATES[1:2], 20) if os.environ.get(QUICK) else Plan()
    yield from findings(plan, folder, scratch)


def findings(plan: Plan, folder: Path, scratch: Path) -> Iterator[Finding]:
    run = partial(_run, folder=folder, scratch=scratch)
    trained = run_cells([Cell(task, rank, seed, rate, plan.steps) for task in plan.tasks for rank in plan.ranks
                         for rate in plan.rates for seed in plan.seeds], run, scratch)  # fmt: skip
    chosen = {(task, rank): _best_rate(plan, trained, task, rank) for task in plan.tasks for rank in plan.ranks}
    top, others = plan.ranks[0], tuple(plan.ranks[1:])
    cut = run_cells([Cell(task, top, seed, chosen[task, top], plan.steps, others) for task in plan.tasks
                     for seed in plan.seeds], run, scratch)  # fmt: skip
    tested: dict[tuple[str, int], dict[str, float]] = {}
    for task in plan.tasks:
        for seed in plan.seeds:
            cells = [Cell(task, rank, seed, chosen[task, rank], plan.steps) for rank in plan.ranks]
            whole = cut[Cell(task, top, seed, chosen[task, top], plan.steps, others)]
            experts = {f"scratch {cell.rank}": trained[cell]["parent"]["folder"] for cell in cells}
            experts |= {f"cut {each['rank']}": each["folder"] for each in whole["members"]}
            tested[task, seed] = _test(cells[0], experts, folder, scratch)
    for rank in others:
        yield _at_rank(plan, rank, tested, cut)
    for task in plan.tasks:
        yield _on_task(plan, task, others, tested, chosen)
    one = fmean(found["metrics"]["steps"] for found in cut.values())
    each = fmean(sum(trained[Cell(task, rank, seed, chosen[task, rank], plan.steps)]["parent"]["steps"]
                     for rank in plan.ranks) for task in plan.tasks for seed in plan.seeds)  # fmt: skip
    yield Finding(f"training steps of a front of {len(plan.ranks)} ranks", f"{one:.0f}", f"{each:.0f}",
                  *at_most(one / each, 1 / 3))  # fmt: skip
    hours = [sum(found["seconds"] for found in cells.values()) / 3600 for cells in (cut, trained)]
    yield Finding("hours of one core, all cells", f"{hours[0]:.2f} for the cuts",
                  f"{hours[1]:.2f} for {len(trained)} trainings", "")  # fmt: skip


def _best_rate(plan: Plan, trained: dict[Cell, dict[str, Any]], task: str, rank: int) -> float:
    """The rate with the best validation accuracy over the seeds; among equals, the least loss."""

    def quality(rate: float) -> tuple[float, float]:
        cells = [trained[Cell(task, rank, seed, rate, plan.steps)]["parent"] for seed in plan.seeds]
        return fmean(cell["accuracy"] for cell in cells), -fmean(cell["loss"] for cell in cells)

    return max(plan.rates, key=quality)


def _at_rank(plan: Plan, rank: int, tested: dict[tuple[str, int], dict[str, float]],
             cut: dict[Cell, dict[str, Any]]) -> Finding:  # fmt: skip
    differences = {task: fmean(100 * (tested[task, seed][f"cut {rank}"] - tested[task, seed][f"scratch {rank}"])
                               for seed in plan.seeds) for task in plan.tasks}  # fmt: skip
    ours, peer = (fmean(found[f"{kind} {rank}"] for found in tested.values()) for kind in ("cut", "scratch"))
    mean, worst = fmean(differences.values()), min(differences, key=differences.__getitem__)
    members = [each for found in cut.values() for each in found["members"] if each["rank"] == rank]
    distilled = sum(each["distilled"] for each in members)
    ratio = f"{mean:+.2f} points; worst {worst} {differences[worst]:+.2f}"
    goal = f"≥ -{MEAN_GOALS[rank]:.1f}, no task below -{TASK_GOAL:.1f}" if rank in MEAN_GOALS else ""
    met = round(mean, 2) >= -MEAN_GOALS[rank] and round(differences[worst], 2) >= -TASK_GOAL if goal else None
    name = f"rank {rank} ({members[0]['parameters']:,} parameters), {len(plan.tasks)} tasks, {len(plan.seeds)} seeds"
    return Finding(f"{name}: test accuracy of the cut against a training at this rank",
                   f"{ours:.4f}, {distilled} of {len(members)} distilled", f"{peer:.4f}", ratio, goal, met)  # fmt: skip


def _on_task(plan: Plan, task: str, ranks: Sequence[int], tested: dict[tuple[str, int], dict[str, float]],
             chosen: dict[tuple[str, int], float]) -> Finding:  # fmt: skip
    def values(kind: str) -> str:
        means = (fmean(tested[task, seed][f"{kind} {rank}"] for seed in plan.seeds) for rank in ranks)
        return ", ".join(f"{100 * mean:.1f}" for mean in means)

    top = plan.ranks[0]
    whole = fmean(tested[task, seed][f"scratch {top}"] for seed in plan.seeds)
    rates = ", ".join(f"{chosen[task, rank]:g}" for rank in plan.ranks)
    return Finding(f"{task}: test accuracy at ranks {', '.join(map(str, ranks))}; {100 * whole:.1f} at {top}",
                   values("cut"), values("scratch"), f"rates {rates}")  # fmt: skip


def _job(cell: Cell, folder: Path, scratch: Path) -> Any:
    from ttmoe.adapter import AdapterSpec, count_parameters, plan_groups
    from ttmoe.base import empty_body
    from workers.base.base_sources import resolve_base
    from workers.data.prepared import prepare_task
    from workers.data.task import Task
    from workers.expert_job import ExpertJob
    from workers.training.settings import TrainSettings

    cache = scratch / "cache"
    base = resolve_base(**BASE, cache=cache)
    entry = task_entry(cell.task, folder, scratch, dict.fromkeys(SPLITS, ALL))
    spec = AdapterSpec(targets=("q", "v"), first_layer=2, last_layer=5, rank=cell.rank, shape="48x8|8x48")
    rate = cell.rate * 1e-2 / cell.rank**0.5
    train = TrainSettings(steps=cell.steps, lr=rate, eval_every=50, patience=0, seed=cell.seed)
    data = prepare_task(cell.task, Task.model_validate(entry), cache)
    return ExpertJob(cell.task, base, data, spec, "trained", train, cell.name,
                     count_parameters(plan_groups(empty_body(base), spec)), str(scratch / cell.name),
                     cache=str(cache), trunk_bytes=20 * 10**9, trainings=10**3)  # fmt: skip


def _run(cell: Cell, folder: Path, scratch: Path) -> dict[str, Any]:
    from workers.tuning.cutting_job import run_cutting
    from workers.tuning.distillation import most_distillation_steps
    from workers.tuning.members import CuttingJob

    steps = most_distillation_steps(cell.steps) if cell.ranks else 0
    keep = {rank: f"{cell.name}-{rank}" for rank in cell.ranks}
    job = CuttingJob(_job(cell, folder, scratch), cell.ranks, distill_steps=steps, keep=keep)
    return asdict(run_cutting(job, lambda progress: None))


def _test(cell: Cell, experts: dict[str, str], folder: Path, scratch: Path) -> dict[str, float]:
    """The test accuracy of each expert by its files' folder; read from its own file if it is there."""
    from ttmoe.atomic_write import write_atomically
    from ttmoe.expert_files import load_expert
    from workers.base.resident import load_resident_base
    from workers.expert_job import load_rows
    from workers.tuning.passes import measure_experts

    path = scratch / f"{cell.task}-{cell.steps}-{cell.seed}-test.json"
    if path.is_file() and (kept := json.loads(path.read_text()))["experts"] == experts:
        return kept["accuracy"]
    job = _job(cell, folder, scratch)
    resident_base = load_resident_base(job.base, job.device)
    with resident_base.in_use() as bank:
        for name, files in experts.items():
            load_expert(bank, Path(files), job.base.digest, name=name)
        load_expert(bank, Path(next(iter(experts.values()))), job.base.digest, name=cell.task)
        rows = load_rows(job, resident_base, "test", lambda progress: None)
        found = measure_experts(bank, list(experts), rows, resident_base.pad_id, lambda: None)
    accuracy = {name: metrics["accuracy"] for name, metrics in found.items()}
    write_atomically(path, json.dumps({"experts": experts, "accuracy": accuracy}, indent=1).encode())
    return accuracy
