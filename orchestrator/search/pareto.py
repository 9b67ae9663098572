"""The Pareto front of trials by accuracy and parameters, and the hypervolume that it dominates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Values = Mapping[str, Any]
"""A trial's ``accuracy`` (higher is better) and ``parameters`` (lower is better)."""


def is_dominated(trial: Values, others: Iterable[Values]) -> bool:
    """Return whether one of the others is at least as good in both, and better in one."""
    return any(
        other["accuracy"] >= trial["accuracy"]
        and other["parameters"] <= trial["parameters"]
        and (other["accuracy"], -other["parameters"]) != (trial["accuracy"], -trial["parameters"])
        for other in others
    )


def pareto_front(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the trials that no other trial dominates, each ``spec_hash`` once."""
    by_spec = {trial["spec_hash"]: trial for trial in trials}
    return [trial for trial in by_spec.values() if not is_dominated(trial, trials)]


def hypervolume(trials: Iterable[Values], most_parameters: float, least_accuracy: float = 0.0) -> float:
    """Return the area that trials dominate, by accuracy and the logarithm (base 10) of the parameters.

    Args:
        trials: The trials.
        most_parameters: Parameters of the reference point; trials with more add nothing.
        least_accuracy: Accuracy of the reference point.
    """
    best: float = least_accuracy
    area = 0.0
    # From the fewest parameters to the most: each trial adds what it is better by than all smaller ones.
    for trial in sorted(trials, key=lambda each: (each["parameters"], -each["accuracy"])):
        if trial["accuracy"] > best and trial["parameters"] < most_parameters:
            area += (trial["accuracy"] - best) * math.log10(most_parameters / max(1, trial["parameters"]))
            best = trial["accuracy"]
    return area


def hypervolumes(trials: Iterable[dict[str, Any]], most_parameters: float) -> list[float]:
    """Return the hypervolume of the first trial, of the first two, and so on."""
    front: list[dict[str, Any]] = []
    found = []
    for trial in trials:
        front = pareto_front([*front, trial])
        found.append(hypervolume(front, most_parameters))
    return found
