"""What a search chooses from: ranks, and a few good shapes for each adapted map."""

from __future__ import annotations

from typing import Any

from orchestrator.config import Search
from ttmoe.adapter import Group
from ttmoe.errors import InputError
from ttmoe.shapes import candidate_shapes

# Of all shapes with the same numbers of factors on both sides, this many with the fewest parameters are tried.
SHAPES_PER_FORM = 2


def search_space(groups: list[Group], search: Search) -> dict[str, list[Any]]:
    """Choices by name: ``rank``, and ``shape.<role>`` (factors as text) for every group of the adapter.

    Raises InputError where no shape of a map has that many cores.
    """
    space: dict[str, list[Any]] = {"rank": list(search.ranks)}
    for group in groups:
        size = group.method.in_features, group.method.out_features
        forms: dict[tuple[int, int], list[str]] = {}
        for shape in candidate_shapes(*size, max(search.ranks), cores=search.cores):
            kept = forms.setdefault((len(shape.inputs), len(shape.outputs)), [])
            if len(kept) < SHAPES_PER_FORM:
                kept.append(str(shape).split("@")[0])
        if not forms:
            raise InputError(f"no shape of {size[0]} to {size[1]} features has {search.cores[0]} to {search.cores[1]} cores",
                             where="search.cores", fix="allow more or fewer cores")  # fmt: skip
        space[f"shape.{group.role}"] = sorted({text for texts in forms.values() for text in texts})
    return space


def chosen_adapter(choice: dict[str, Any]) -> dict[str, Any]:
    """The fields of an adapter that a choice from the space replaces."""
    shapes = {name.removeprefix("shape."): text for name, text in choice.items() if name.startswith("shape.")}
    return {"method": "tt", "rank": choice["rank"], "shape": shapes}


def pareto_front(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials that no other beats: more accurate with as few parameters, or smaller and as accurate."""

    def beaten(a: dict[str, Any]) -> bool:
        return any(b["accuracy"] >= a["accuracy"] and b["parameters"] <= a["parameters"]
                   and (b["accuracy"], -b["parameters"]) != (a["accuracy"], -a["parameters"]) for b in trials)  # fmt: skip

    return [trial for trial in trials if not beaten(trial)]
