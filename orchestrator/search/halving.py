"""Successive halving: which trials go on after a rung. The decisions are those of Ray Tune's schedulers.

Tune's own loop would start a process for every trial that runs at the same time, and trials that share a pass of the
base cannot be in several processes. So the schedulers decide here, and the worker pool runs the trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from orchestrator.config.search_settings import Objective
from orchestrator.search.pareto import is_dominated
from orchestrator.search.trial import RungResult, Trial

_NO_CONTROLLER: Any = None  # these schedulers never ask Tune's loop


class Halving:
    """Decides at every rung which trials of a task go on.

    Args:
        rungs: Steps of the rungs, see ``SearchSettings.rung_steps``.
        factor: One of so many trials goes on.
        objectives: With accuracy alone, asynchronous successive halving (Li et al. 2020, ASHA) as Ray Tune has it.
            With several, every trial goes on that no other dominates at the rung, and so do the most accurate ones.
    """

    def __init__(self, rungs: Sequence[int], factor: int, objectives: Sequence[Objective]) -> None:
        self.rungs = tuple(rungs)
        settings: dict[str, Any] = {
            "time_attr": "steps",
            "metric": "accuracy",
            "mode": "max",
            "max_t": self.rungs[-1],
            "grace_period": self.rungs[0],
            "reduction_factor": factor,
        }
        asha = ASHAScheduler(**settings, stop_last_trials=False)
        self._scheduler: TrialScheduler = asha if len(objectives) < 2 else NonDominatedHalving(asha, objectives)
        self._trials: dict[str, TuneTrial] = {}

    def next_rung(self, steps: int) -> int:
        """Return the steps of the first rung after ``steps``."""
        return next(rung for rung in self.rungs if rung > steps)

    def goes_on(self, trial: Trial, result: RungResult) -> bool:
        """Return whether a trial that reached a rung, but not the last one, is trained further."""
        if trial.key not in self._trials:
            self._trials[trial.key] = TuneTrial("ttmoe", trial_id=trial.key, stub=True)
            self._scheduler.on_trial_add(_NO_CONTROLLER, self._trials[trial.key])
        report = {"steps": result.steps, "accuracy": result.accuracy, "parameters": trial.parameters}
        decision = self._scheduler.on_trial_result(_NO_CONTROLLER, self._trials[trial.key], report)
        return bool(decision == TrialScheduler.CONTINUE)


class NonDominatedHalving(FIFOScheduler):
    """A scheduler of Ray Tune for several objectives: the trials that no other dominates at a rung go on.

    Args:
        single: Scheduler for the accuracy alone. A trial goes on too if this one lets it.
        objectives: ``accuracy`` (higher is better) and ``parameters`` (lower is better).
    """

    def __init__(self, single: TrialScheduler, objectives: Sequence[Objective]) -> None:
        super().__init__()
        self._single, self._objectives = single, tuple(objectives)
        self._results: dict[int, list[dict[str, Any]]] = {}  # by steps

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Note a new trial."""
        self._single.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Return CONTINUE or STOP for a trial that reached a rung."""
        others = self._results.setdefault(result["steps"], [])
        dominated = is_dominated(result, others)
        others.append(result)
        decision: str = self._single.on_trial_result(tune_controller, trial, result)
        return decision if dominated else TrialScheduler.CONTINUE
