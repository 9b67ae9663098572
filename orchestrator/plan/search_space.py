"""Checks of a plan's search before any work starts."""

from __future__ import annotations

from orchestrator.plan.library_state import LibraryState
from orchestrator.plan.planning import Plan
from orchestrator.plan.rank_space import rank_space
from orchestrator.plan.space import plan_space
from ttmoe.base import empty_body


def check_search_space(plan: Plan, state: LibraryState) -> None:
    """Raise InputError if a search has to be made and has nothing to choose from, before any work starts."""
    if state.search_is_missing:
        check_spaces(plan)


def check_spaces(plan: Plan) -> None:
    """Raise InputError if the plan's search has nothing to choose from on one of its tasks."""
    model, search = empty_body(plan.base), plan.config.search
    make_space = rank_space if search and search.method == "truncate" else plan_space
    for task in plan.config.searched_tasks:
        make_space(plan, task, model)
