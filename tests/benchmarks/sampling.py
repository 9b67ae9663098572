"""Row ``sampling``: the searches of ``ttmoe tune`` by trials against random search, by the hypervolume of their fronts.

Every point of a space is trained once on TREC with MiniLM, and evaluated at the rungs. The searches are then made on
this table, many times with other seeds: ``TaskSearch`` as the product has it, one trial after another, without earlier
searches. What a search has found is the front of the trials that it trained to the end, on the validation split. The
reference point has the parameters of LoRA-16, and the accuracy of the most frequent class.

A point of the table has a result file in ``runs/benchmarks/sampling``; what is stopped goes on. To measure anew, remove
the folder.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.cells import run_cells
from tests.benchmarks.library import BASE, DATA, SPLITS
from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import QUICK
from tests.benchmarks.routing import ALL, task_entry
from tests.benchmarks.table import Finding

STEPS, FIRST, RANKS, RATES = (18, 2, [1, 2], [5e-3]) if os.environ.get(QUICK) else (
    99, 11, [1, 2, 4, 8, 16], [2.5e-3, 5e-3, 1e-2])  # fmt: skip
TRIALS = 24  # of random search: its budget is so many times STEPS
SEEDS = range(20)
LORA_PARAMETERS = 98_304
OBJECTIVES = ("accuracy", "parameters")


@dataclass(frozen=True)
class Cell:
    """A point of the space, by its number."""

    number: int
    point: Any = field(compare=False)

    @property
    def file(self) -> str:
        return f"{self.number}.json"


@dataclass(frozen=True)
class Search:
    """How a search is made, and which share of random search's steps it may train."""

    name: str
    method: str
    halved: bool
    share: float


SEARCHES = (
    Search("TPE with successive halving, half of the steps", "tpe", True, 0.5),
    Search("TPE without halving, half of the steps", "tpe", False, 0.5),
    Search("random with successive halving, half of the steps", "random", True, 0.5),
)
PEER = Search("random", "random", False, 1.0)


def run() -> Iterator[Finding]:
    from orchestrator.config.loading import load_config
    from orchestrator.plan.planning import make_plan
    from orchestrator.plan.space import plan_space
    from ttmoe.base import empty_body

    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA) or not (folder / "trec").is_dir():
        yield Finding("searches against random search", "not run", f"set {DATA} to the tasks' folder", "")
        return
    scratch = ROOT / "runs" / "benchmarks" / ("sampling-quick" if os.environ.get(QUICK) else "sampling")
    scratch.mkdir(parents=True, exist_ok=True)
    plan = make_plan(load_config(_config(folder, scratch)).config)
    space = plan_space(plan, "trec", empty_body(plan.base))
    cells = [Cell(number, point) for number, point in enumerate(space.points())]
    measured = run_cells(cells, partial(_run, folder=folder, scratch=scratch), scratch)
    table = {json.dumps(cell.point, sort_keys=True): found for cell, found in measured.items()}
    labels = [json.loads(line)["label"] for line in (folder / "trec" / "validation.jsonl").open()]
    frequent = max(Counter(labels).values()) / len(labels)
    whole = _hypervolume([_values(found) for found in table.values()], frequent)
    peers = [_hypervolume(_search(PEER, seed, space, table), frequent) for seed in SEEDS]
    peer = f"random, {TRIALS} trials: {_spread(peers)}; of all points {whole:.3f}"
    name = f"{len(table)} points of TREC on MiniLM, {STEPS} steps, {len(SEEDS)} seeds: hypervolume"
    for search in SEARCHES:
        ours = [_hypervolume(_search(search, seed, space, table), frequent) for seed in SEEDS]
        ratio = fmean(ours) / fmean(peers)
        goal = ("≥ 1", ratio >= 1) if search is SEARCHES[0] else ("", None)
        yield Finding(f"{name}: {search.name}", _spread(ours), peer, f"{ratio:.3f}", *goal)
    hours = sum(found["seconds"] for found in measured.values()) / 3600
    yield Finding("hours of one core, all points", f"{hours:.2f}", "", "")


def _spread(values: list[float]) -> str:
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _values(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"accuracy": found["rungs"][-1]["accuracy"], "parameters": found["parameters"]}


def _hypervolume(trials: list[dict[str, Any]], least: float) -> float:
    from orchestrator.search.pareto import hypervolume

    return hypervolume(trials, LORA_PARAMETERS, least)


def _search(search: Search, seed: int, space: Any, table: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The complete trials of a search on the table."""
    from orchestrator.search.halving import Halving
    from orchestrator.search.repetitions import SearchSize
    from orchestrator.search.sampler import Sampler
    from orchestrator.search.task_search import TaskSearch
    from orchestrator.search.trial import RungResult, Trial

    def key(point: Any) -> str:
        return json.dumps(point, sort_keys=True)

    def make(number: int, point: Any, origin: Any, seed: int = 0) -> Trial:
        return Trial("trec", number, point, key(point), table[key(point)]["parameters"], origin, seed)

    rungs = tuple(each["steps"] for each in next(iter(table.values()))["rungs"]) if search.halved else (STEPS,)
    sampler = Sampler(space, search.method, OBJECTIVES, seed, TRIALS // 3, key)
    found = TaskSearch("trec", sampler, Halving(rungs, 3, OBJECTIVES), SearchSize(len(table)), make)
    budget, spent = search.share * TRIALS * STEPS, 0
    while spent < budget and (trial := found.next()):
        rung, before = found.next_rung(trial), trial.steps
        (result,) = (each for each in table[trial.spec_hash]["rungs"] if each["steps"] == rung)
        found.report(trial, RungResult(**result), ended=rung == STEPS)
        spent += rung - before
    return [_values(table[trial.spec_hash]) for trial in found.trials if trial.state == "finished"]


def _config(folder: Path, scratch: Path) -> dict[str, Any]:
    return {
        "library": "sampling",
        "base": BASE,
        "adapter": {"layers": "2-", "rank": 4},
        "train": {"batch_size": 32, "eval_every": 50, "patience": 0},
        "tasks": {"trec": task_entry("trec", folder, scratch, dict.fromkeys(SPLITS, ALL))},
        "search": {"task": "trec", "method": "tpe", "steps": STEPS, "rungs": {"first": FIRST, "factor": 3},
                   "ranks": RANKS, "cores": [4, 8], "space": {"lr": RATES}},
        "storage": {"root": str(scratch / "runs"), "cache": str(ROOT / "runs" / "cache")},
    }  # fmt: skip


def _run(cell: Cell, folder: Path, scratch: Path) -> dict[str, Any]:
    from orchestrator.config.loading import load_config
    from orchestrator.plan.planning import make_plan
    from orchestrator.plan.space import plan_space
    from orchestrator.search.trial_units import TaskTrials
    from ttmoe.base import empty_body
    from workers.failure import Failure
    from workers.tuning.trial_job import run_trials

    config = load_config(_config(folder, scratch)).config
    plan = make_plan(config)
    assert config.search
    rungs = config.search.rung_steps
    trials = TaskTrials(plan, "trec", plan_space(plan, "trec", empty_body(plan.base)), rungs, scratch / "trials")
    trial = trials.make(cell.number, cell.point, "sampled")
    found = []
    for rung in rungs:
        (result,) = run_trials([trials.job(trial, rung)], lambda progress: None).values()
        if isinstance(result, Failure):
            raise RuntimeError(str(result))
        found.append({key: value for key, value in asdict(result).items() if key != "ended"})
    trials.remove_files(trial)
    return {"point": cell.point, "parameters": trial.parameters, "rungs": found}
