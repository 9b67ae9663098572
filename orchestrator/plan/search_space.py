"""The search space: ranks, and the numbers of input and output factors of the tensor-train shapes."""

from __future__ import annotations

from typing import Any

from orchestrator.config.schema import SearchSettings
from orchestrator.plan.library_state import LibraryState
from orchestrator.plan.planning import Plan
from orchestrator.plan.space import plan_space
from ttmoe.adapter import Group, plan_groups
from ttmoe.base import empty_body
from ttmoe.errors import InputError
from ttmoe.shapes import candidate_shapes


def check_search_space(plan: Plan, state: LibraryState) -> None:
    """Raise InputError if a search has to be made and has nothing to choose from, before any work starts."""
    if state.search_is_missing:
        check_spaces(plan)


def check_spaces(plan: Plan) -> None:
    """Raise InputError if the plan's search has nothing to choose from on one of its tasks."""
    model = empty_body(plan.base)
    for task in plan.config.searched_tasks:
        plan_space(plan, task, model)


def plan_search_space(plan: Plan) -> tuple[list[Group], dict[str, list[Any]]]:
    """Return the adapter's groups that the plan's search varies, and its choices (see ``search_space``).

    Raises:
        InputError: If no choice fits the widths of the base.
        ValueError: If the config has no search.
    """
    if (search := plan.config.search) is None:
        raise ValueError("the config has no search")
    if search.task is None:
        raise InputError("a run searches on one task", where="search.tasks", fix="set search.task, or use `ttmoe tune`")
    groups = plan_groups(empty_body(plan.base), plan.experts[search.task].job.adapter)
    return groups, search_space(groups, search)


def search_space(groups: list[Group], search: SearchSettings) -> dict[str, list[Any]]:
    """Return the choices of a search.

    Args:
        groups: The groups of the searched task's adapter. One choice of factors applies to all of them, each with its
            most balanced shape.
        search: The search settings: ranks, and the smallest and largest number of cores.

    Returns:
        ``rank``: the ranks; ``factors``: texts such as ``2+3`` for two input factors and three output factors.

    Raises:
        InputError: If no numbers of factors within ``search.cores`` fit the widths of all groups.
    """
    fewest, most = search.cores
    pairs = [(p, q) for p in range(1, most) for q in range(1, most) if fewest <= p + q <= most and abs(p - q) <= 1]
    fitting = [f"{p}+{q}" for p, q in pairs if all(balanced_factors(group, p, q) for group in groups)]
    if not fitting:
        sizes = ", ".join(f"{g.method.in_features} to {g.method.out_features}" for g in groups)
        raise InputError(
            f"no shape with {fewest} to {most} cores fits linear maps of {sizes} features",
            where="search.cores",
            fix="allow more or fewer cores",
        )
    return {"rank": list(search.ranks), "factors": fitting}


def balanced_factors(group: Group, inputs: int, outputs: int) -> str | None:
    """Return the factors of the most balanced shape with given numbers of factors.

    Args:
        group: The group, which gives the widths.
        inputs: Number of input factors.
        outputs: Number of output factors.

    Returns:
        The factors as in ``16x24|24x16``; None if the widths have no such factorisation.
    """
    cores = (inputs + outputs,) * 2
    shapes = [
        shape
        for shape in candidate_shapes(group.method.in_features, group.method.out_features, 1, cores=cores)
        if len(shape.inputs) == inputs
    ]
    best = min(shapes, key=lambda shape: (sum(shape.inputs + shape.outputs), str(shape)), default=None)
    return str(best).split("@")[0] if best else None


def adapter_changes(groups: list[Group], choice: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ``AdapterSpec`` that a choice from ``search_space`` replaces."""
    inputs, outputs = map(int, choice["factors"].split("+"))
    shapes = {group.role: balanced_factors(group, inputs, outputs) for group in groups}
    return {"method": "tt", "rank": choice["rank"], "shape": shapes}
