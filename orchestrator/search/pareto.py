"""The Pareto front of a search's trials."""

from __future__ import annotations

from typing import Any


def pareto_front(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the trials that no other trial dominates in accuracy and parameters, each spec once."""

    def is_dominated(a: dict[str, Any]) -> bool:
        return any(
            b["accuracy"] >= a["accuracy"]
            and b["parameters"] <= a["parameters"]
            and (b["accuracy"], -b["parameters"]) != (a["accuracy"], -a["parameters"])
            for b in trials
        )

    by_spec = {trial["spec_hash"]: trial for trial in trials}  # the sampler may suggest the same choice twice
    return [trial for trial in by_spec.values() if not is_dominated(trial)]
