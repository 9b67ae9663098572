"""The choices that Optuna suggests for the trials of a search; no choice is suggested twice."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState

from orchestrator.config.schema import SearchSettings

OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {"accuracy": "maximize", "parameters": "minimize"}


class Suggestions:
    """The choices of one search by accuracy and parameters, from a sampler that learns from each trial that ended.

    Args:
        space: Options by name, see ``search_space``.
        search: The search settings.
        earlier: Metrics and choices of trials that finished before; they count as trials and are not suggested again.

    Attributes:
        left: Trials that may still be suggested.
    """

    def __init__(
        self, space: dict[str, list[Any]], search: SearchSettings, earlier: Sequence[dict[str, Any]] = ()
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        startup = max(4, search.trials // 3)
        sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=startup, constant_liar=True)
        self._study = optuna.create_study(sampler=sampler, directions=[*OBJECTIVES.values()])
        self._options: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(options) for name, options in space.items()
        }
        self._random = random.Random(search.seed)
        self._asked: dict[str, optuna.Trial] = {}
        self._untried = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
        for trial in earlier:
            choice = {name: trial[name] for name in space}
            self._untried.remove(choice)
            values = [trial[name] for name in OBJECTIVES]
            self._study.add_trial(optuna.trial.create_trial(params=choice, distributions=self._options, values=values))
        self.left = min(search.trials - len(earlier), len(self._untried))

    def suggest(self, key: str) -> dict[str, Any] | None:
        """Return the choice of the next trial, which ``finish`` will name by ``key``; None if none is left."""
        if self.left <= 0:
            return None
        self.left -= 1
        trial = self._study.ask(self._options)
        if trial.params not in self._untried:  # the sampler repeats itself, above all in a small space
            self._study.tell(trial, state=TrialState.FAIL)
            self._study.enqueue_trial(self._random.choice(self._untried))
            trial = self._study.ask(self._options)
        self._untried.remove(trial.params)
        self._asked[key] = trial
        return trial.params

    def finish(self, key: str, result: dict[str, Any] | None) -> None:
        """Tell the sampler the metrics of a trial; None if it failed."""
        values = [result[name] for name in OBJECTIVES] if result else None
        self._study.tell(self._asked.pop(key), values, state=None if values else TrialState.FAIL)
