"""How much each choice of a search matters for the accuracy."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial

from orchestrator.search.trial import Trial

LEAST_TRIALS = 20  # so that five of them are among the most accurate ones, the least number that Optuna recommends
TOP_SHARE = 0.25


def choice_importances(trials: Sequence[Trial]) -> dict[str, float] | None:
    """Return the importance of each choice, as shares of their sum; None if there are too few trials to tell.

    It is the divergence between the options that the most accurate trials have and those that all trials have
    (PED-ANOVA, Watanabe et al. 2023). Of a choice that applies to a part of the trials only, those count
    (conditional PED-ANOVA, which Optuna has from 5.0 on). Optuna's other evaluators need scikit-learn.

    Args:
        trials: Trials of one task. Repetitions with other seeds, adapters that are trained for comparison and trials
            without an accuracy do not count.
    """
    used = [trial for trial in trials if trial.is_measured and trial.seed == 0 and trial.origin != "reference"]
    if len(used) < LEAST_TRIALS or len({trial.accuracy for trial in used}) == 1:
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = _options(used)
    distributions = {name: _distribution(values) for name, values in options.items()}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.add_trials([
        create_trial(
            params={name: options[name].index(value) for name, value in trial.point.items() if name in options},
            distributions={name: distributions[name] for name in trial.point if name in options},
            value=trial.accuracy,
        )
        for trial in used
    ])  # fmt: skip
    with warnings.catch_warnings():  # of choices that few trials have, and of trials that are equally accurate
        warnings.simplefilter("ignore")
        found = PedAnovaImportanceEvaluator(target_quantile=TOP_SHARE).evaluate(study)
    total = sum(found.values())
    return {name: value / total for name, value in found.items()} if total > 0 else None


def _options(trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """Return the options of each choice that the trials have, in order; choices with a single one are left out."""
    values: dict[str, dict[str, Any]] = {}
    for trial in trials:
        for name, value in trial.point.items():
            values.setdefault(name, {})[json.dumps(value)] = value
    return {name: sorted(found.values(), key=_order) for name, found in values.items() if len(found) > 1}


def _order(option: Any) -> tuple[Any, ...]:
    return (0, option) if _is_number(option) else (1, json.dumps(option))


def _is_number(option: Any) -> bool:
    return isinstance(option, int | float)


def _distribution(options: Sequence[Any]) -> BaseDistribution:
    """Return the distribution of an option's index: of numbers, neighbours are alike."""
    if all(map(_is_number, options)):
        return IntDistribution(0, len(options) - 1)
    return CategoricalDistribution(range(len(options)))
