"""A search in Ray Tune's terms: a trial as a trainable, its choices as a searcher, and a callback that records it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher
from workers.trial import TrialRunner

from cluster.embedded import require_alive
from orchestrator.plan.planning import Plan, trial_expert_job
from orchestrator.plan.search_space import adapter_changes
from orchestrator.progress.live_view import LiveView
from orchestrator.search.suggestions import Suggestions
from orchestrator.search.trial_records import TrialRecords
from ttmoe.adapter import AdapterSpec, plan_groups
from ttmoe.base import empty_body
from workers.expert_job import ExpertJob


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


class SuggestedChoices(Searcher):
    """The choices of ``Suggestions``, as Tune asks for them."""

    def __init__(self, suggestions: Suggestions) -> None:
        super().__init__()
        self.suggestions = suggestions

    def suggest(self, trial_id: str) -> Any:
        """Return the choice of a new trial."""
        return self.suggestions.suggest(trial_id) or Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the sampler how a trial ended."""
        self.suggestions.finish(trial_id, None if error else result)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a repeated search starts from the records of its trials."""


class TrialCallback(tune.Callback):
    """Records each trial as it ends, and shows it in the live view.

    Args:
        view: The live view.
        records: Receives the trials.
        describe: Returns the description of a choice, see ``trial_job``.
    """

    def __init__(
        self, view: LiveView, records: TrialRecords, describe: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        self.view, self.records, self.describe = view, records, describe

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing: Tune saves its callbacks with the experiment, and a live view cannot be pickled."""
        return {}

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """End the search if the embedded Ray has ended; Tune would wait for it."""
        require_alive()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Show a trial as training."""
        self.view.set_state(_name(trial), "training")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Record a trial, and show it as done with its validation accuracy."""
        result = self.records.add(trial.last_result)
        note = f"rank {result['rank']}, {result['factors']} factors, {result['parameters']:.0f} parameters"
        self.view.set_state(_name(trial), "done", note, {"validation.accuracy": result["accuracy"]})

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Show a trial as tried again; Tune does so once."""
        self.view.set_state(_name(trial), "retrying", _error(trial))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Record a trial as failed, and show it."""
        self.records.add_failed(self.describe(trial.config), _error(trial))
        self.view.set_state(_name(trial), "failed", _error(trial))


def _name(trial: Any) -> str:
    return str(trial.trial_id).split("_")[-1]


def _error(trial: Any) -> str:
    """Return the last line of the trial's error: Tune keeps the traceback as text."""
    lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
    return lines[-1] if lines else "no error message is recorded"
