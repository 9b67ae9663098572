"""One trial of a search as a Ray Tune trainable, and the callback that shows trials in the live view."""

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
    """A trial that trains and measures one choice in one step; its process keeps the base for the next trials."""

    def setup(self, config: dict[str, Any], plan: Plan, job: ExpertJob) -> None:  # type: ignore[override]
        """Load the base and the task's rows, once per process."""
        self.plan, self.job = plan, job
        self.model, self.runner = empty_body(plan.base), TrialRunner.load(job)

    def step(self) -> dict[str, Any]:
        """Train the choice in ``self.config`` and return its metrics and description."""
        trial, description = trial_job(self.plan, self.model, self.job, self.config)
        return {**self.runner.run(trial), **description, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Reuse this process for the next trial."""
        self.config = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: a trial is one step, so it has nothing to resume."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing; see ``save_checkpoint``."""


def trial_job(plan: Plan, model: Any, job: ExpertJob, choice: dict[str, Any]) -> tuple[ExpertJob, dict[str, Any]]:
    """Return the expert job of one choice, and the description to record.

    Args:
        plan: The plan.
        model: The base's body; its modules may be on the meta device.
        job: The job of the searched task, with the search's training settings.
        choice: A choice from ``search_space``.

    Returns:
        The job, and its rank, number of cores, factors, shapes by role (JSON) and spec hash.
    """
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
    """Shows the start and the end of each trial in the live view."""

    def __init__(self, view: LiveView) -> None:
        self.view = view

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing: Tune saves its callbacks with the experiment, and a live view cannot be pickled."""
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Show a trial as training."""
        self.view.set_state(_name(trial), "training")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Show a trial as done, with its validation accuracy."""
        result = trial.last_result
        note = f"rank {result['rank']}, {result['factors']} factors, {result['parameters']:.0f} parameters"
        self.view.set_state(_name(trial), "done", note, {"validation.accuracy": result["accuracy"]})

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Show a trial as failed; Tune retries it once."""
        self.view.set_state(_name(trial), "failed", "see its error.txt")


def _name(trial: Any) -> str:
    return str(trial.trial_id).split("_")[-1]
