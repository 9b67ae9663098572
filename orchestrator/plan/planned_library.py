"""The plan of a config as a value: what a run would do and why, its memory and time, and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.config.loading import LoadedConfig
from orchestrator.config.store_address import StoreAddress
from orchestrator.plan.folders import LibraryFolders
from orchestrator.plan.forecast import Forecast, check_feasible, check_router_fits, check_search_fits, make_forecast
from orchestrator.plan.library_state import LibraryState, read_library_state
from orchestrator.plan.memory_fit import fit_memory
from orchestrator.plan.plan_json import plan_as_dict
from orchestrator.plan.planning import Plan, make_plan
from orchestrator.plan.search_space import check_search_space
from orchestrator.pool.capacity import Node
from ttmoe.base import empty_body
from ttmoe.errors import InfeasibleError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.registry import Registry


@dataclass(frozen=True)
class PlannedLibrary:
    """What a run of a config would do.

    Attributes:
        plan: The base, the experts and what they are made from.
        state: Which experts, router and search exist, which have to be made, and why.
        forecast: Memory, parallel jobs, disk space and time of what has to be made.
        problem: Why the work fits no node, or None if it fits.
    """

    plan: Plan
    state: LibraryState
    forecast: Forecast
    problem: InfeasibleError | None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``ttmoe plan --json``, not rounded; its keys do not change."""
        return plan_as_dict(self.plan, self.state, self.forecast, self.problem)


def plan_library(
    loaded: LoadedConfig, console: Console | None = None, nodes: Sequence[Node] | None = None
) -> PlannedLibrary:
    """Plan a config. It writes only prepared data and converted bases to ``storage.cache``.

    Args:
        loaded: The config.
        console: Shows that it is planning; None shows nothing.
        nodes: Nodes on which the work would run; by default those that there are.

    Raises:
        InputError: If the config cannot be run.
    """
    with console.status("planning: base, data, adapters") if console else nullcontext():
        LibraryFolders.of(loaded.config).check(loaded.config.store)
        registry = _open_registry(loaded.config.store)
        plan = make_plan(loaded.config, nodes, registry)
        plan = fit_memory(plan, empty_body(plan.base))
        state = read_library_state(plan, registry)
        check_search_space(plan, state)
        return PlannedLibrary(plan, state, make_forecast(plan, state, plan.nodes), _find_problem(plan, state))


def _open_registry(store: StoreAddress) -> Registry | None:
    """Return the registry, or None if it does not exist: a plan does not create one."""
    if store.is_missing:
        return None
    from orchestrator.registry import Registry

    return Registry.open(store.uri, store.artifacts, store.source)


def _find_problem(plan: Plan, state: LibraryState) -> InfeasibleError | None:
    """Return why the work would wait forever, or None."""
    try:
        if state.has_work:
            check_feasible(plan, plan.nodes, state.todo)
            check_router_fits(plan, state, plan.nodes)
            check_search_fits(plan, state, plan.nodes)
    except InfeasibleError as error:
        return error
    return None
