"""A search whose trials train nothing: everything else is real (sampler, pool on Ray, workers, MLflow on SQLite).

``python tests/scripted_trials.py FOLDER COUNT`` makes a search of COUNT trials and prints what it took.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from scripted_jobs import Usage, write_library

SPACE = {"ranks": list(range(1, 17)), "cores": [2, 6], "space": {"alpha": list(range(1, 17)), "lr": "keep"}}


def scripted() -> Callable[..., dict[str, Any]]:
    """Return a replacement of ``run_trials``; it is a local function, so that Ray pickles it by value."""

    def run_trials(jobs: Sequence[Any], report: Callable[[Any], None]) -> dict[str, Any]:
        from workers.progress import Progress
        from workers.tuning.trial_job import TrialResult

        outcomes = {}
        for job in jobs:
            adapter, steps = job.expert.adapter, job.expert.train.steps
            report(Progress("training", job.rung, steps, {"train.loss": 1.0}, key=job.expert.task))
            accuracy = 0.9 - 0.3 / adapter.rank - 0.001 * abs(adapter.alpha - 8) - 0.1 / job.rung
            outcomes[job.expert.task] = TrialResult(job.rung, accuracy, 1 - accuracy, 0.01, job.rung == steps)
        return outcomes

    return run_trials


def search(folder: Path, base_folder: Path, count: int, **settings: Any) -> dict[str, Any]:
    """Make a search of ``count`` scripted trials in a folder; return its times, memory and the states of its trials."""
    from rich.console import Console

    import orchestrator.search.trial_units
    from cluster.local import ray_session
    from orchestrator.config.loading import load_config
    from orchestrator.plan.forecast import trial_resources
    from orchestrator.plan.planning import make_plan
    from orchestrator.pool.worker_pool import WorkerPool
    from orchestrator.progress.live_view import LiveView
    from orchestrator.registry import Registry
    from orchestrator.search.tuning import run_search

    path = write_library(folder, base_folder, 1)
    config = json.loads(path.read_text())
    config["search"] = {"task": "t0000", "method": "tpe", "trials": count, "steps": 90, **SPACE, **settings}
    config["storage"] = {"root": str(folder / "runs")}
    path.write_text(json.dumps(config))
    loaded = load_config(str(path), []).config
    plan = make_plan(loaded)
    registry = Registry.open(loaded.store.uri, plan.folders.artifacts)
    with (
        pytest.MonkeyPatch.context() as patch,
        ray_session(),
        LiveView(Console(file=(folder / "out.txt").open("w"))) as view,
        Usage() as usage,
        WorkerPool(trial_resources(plan), loaded.failures) as pool,
    ):
        patch.setattr(orchestrator.search.trial_units, "run_trials", scripted())
        began = time.monotonic()
        (record,) = run_search(plan, registry, view, pool)
        took = time.monotonic() - began
    runs = registry.trial_runs(plan.folders.library)
    states = Counter(run.tags["state"] for run in runs)
    unique = len({run.tags["spec_hash"] for run in runs})
    return usage.figures() | {"seconds": took, "states": dict(states), "unique": unique, "trials": len(record.trials)}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    print(json.dumps(search(target / "library", tiny.save_base(target / "base"), int(sys.argv[2]))))
