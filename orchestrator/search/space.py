"""What a search chooses from: ranks, and how many factors the two sides of every shape have."""

from __future__ import annotations

from typing import Any

from orchestrator.config.schema import SearchSettings
from ttmoe.adapter import Group
from ttmoe.errors import InputError
from ttmoe.shapes import candidate_shapes


def search_space(groups: list[Group], search: SearchSettings) -> dict[str, list[Any]]:
    """Choices by name: ``rank``, and ``factors``, as in ``2+3`` (two input factors, three output factors).

    A choice of factors holds for every map of the adapter, each in its most even shape of that form. Raises InputError
    where no form with the asked number of cores fits all of them.
    """
    fewest, most = search.cores
    forms = [(p, q) for p in range(1, most) for q in range(1, most) if fewest <= p + q <= most and abs(p - q) <= 1]
    fitting = [f"{p}+{q}" for p, q in forms if all(even_shape(group, p, q) for group in groups)]
    if not fitting:
        sizes = ", ".join(f"{g.method.in_features} to {g.method.out_features}" for g in groups)
        raise InputError(
            f"no form with {fewest} to {most} cores fits maps of {sizes} features",
            where="search.cores",
            fix="allow more or fewer cores",
        )
    return {"rank": list(search.ranks), "factors": fitting}


def even_shape(group: Group, inputs: int, outputs: int) -> str | None:
    """The factors, as text, of the most even shape of a map with these numbers of factors; None if there is none."""
    cores = (inputs + outputs,) * 2
    shapes = [
        shape
        for shape in candidate_shapes(group.method.in_features, group.method.out_features, 1, cores=cores)
        if len(shape.inputs) == inputs
    ]
    best = min(shapes, key=lambda shape: (sum(shape.inputs + shape.outputs), str(shape)), default=None)
    return str(best).split("@")[0] if best else None


def adapter_changes(groups: list[Group], choice: dict[str, Any]) -> dict[str, Any]:
    """The fields of an adapter that a choice from the space replaces."""
    inputs, outputs = map(int, choice["factors"].split("+"))
    shapes = {group.role: even_shape(group, inputs, outputs) for group in groups}
    return {"method": "tt", "rank": choice["rank"], "shape": shapes}


def pareto_front(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials that no other beats: more accurate with as few parameters, or smaller and as accurate."""

    def beaten(a: dict[str, Any]) -> bool:
        return any(
            b["accuracy"] >= a["accuracy"]
            and b["parameters"] <= a["parameters"]
            and (b["accuracy"], -b["parameters"]) != (a["accuracy"], -a["parameters"])
            for b in trials
        )

    once = {trial["spec_hash"]: trial for trial in trials}  # a sampler may choose the same twice
    return [trial for trial in once.values() if not beaten(trial)]
