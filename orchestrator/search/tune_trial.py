"""A search's trial as Ray Tune runs it, and the watcher that shows trials as they end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ray import tune

from orchestrator.plan.planning import Plan, trial_expert_job
from orchestrator.progress.live_view import LiveView
from orchestrator.search.space import adapter_changes
from ttmoe.adapter import AdapterSpec, plan_groups
from ttmoe.base import empty_body
from workers.expert_job import ExpertJob
from workers.trial import TrialRunner


class TuneTrial(tune.Trainable):
    """One trial a step; the process, and the base in it, serves trial after trial."""

    def setup(self, config: dict[str, Any], plan: Plan, job: ExpertJob) -> None:  # type: ignore[override]
        """Load the base and the task's rows, once for each process."""
        self.plan, self.job = plan, job
        self.model, self.bench = empty_body(plan.base), TrialRunner.load(job)

    def step(self) -> dict[str, Any]:
        """Train and measure the choice in ``self.config``."""
        trial, described = trial_job(self.plan, self.model, self.job, self.config)
        return {**self.bench.run(trial), **described, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial into this process."""
        self.config = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A trial is one step: there is nothing to resume from."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See ``save_checkpoint``."""


def trial_job(plan: Plan, model: Any, job: ExpertJob, choice: dict[str, Any]) -> tuple[ExpertJob, dict[str, Any]]:
    """The job of one choice, and what is recorded of it."""
    adapter: AdapterSpec = replace(job.adapter, **adapter_changes(plan_groups(model, job.adapter), choice))
    groups = plan_groups(model, adapter)
    trial = trial_expert_job(plan, job.task, groups, adapter, job.train)
    shapes = {group.role: str(group.method).removeprefix("tt:") for group in groups}
    cores = sum(map(int, choice["factors"].split("+")))
    return trial, {
        "rank": choice["rank"],
        "cores": cores,
        "factors": choice["factors"],
        "shapes": json.dumps(shapes),
        "spec_hash": trial.spec_hash,
    }


class TrialCallback(tune.Callback):
    """Tells the live view of each trial's start and end."""

    def __init__(self, view: LiveView) -> None:
        self.view = view

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks to resume a search, and a live view is not to be saved."""
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial was given a process."""
        self.view.state(_name(trial), "training")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial was measured."""
        result = trial.last_result
        note = f"rank {result['rank']}, {result['factors']} factors, {result['parameters']:.0f} parameters"
        self.view.state(_name(trial), "done", note, {"validation.accuracy": result["accuracy"]})

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial failed; Tune tries it once more."""
        self.view.state(_name(trial), "failed", "see its error.txt")


def _name(trial: Any) -> str:
    return str(trial.trial_id).split("_")[-1]
