"""Driver of ``ttmoe tune``: a search by itself, without training the experts of the library."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.error import ClusterEndedError
from cluster.local import ray_session
from orchestrator.config.loading import LoadedConfig, load_config
from orchestrator.plan.choosing import Point
from orchestrator.plan.forecast import check_trial_fits, trial_resources
from orchestrator.plan.memory_fit import fit_memory
from orchestrator.plan.planned_library import plan_library
from orchestrator.plan.planning import Plan
from orchestrator.plan.search_space import check_spaces
from orchestrator.progress.live_view import LiveView
from orchestrator.registry import Registry
from orchestrator.registry.artifacts import PARETO_PLOT, SEARCH_REPORT, TRIALS
from orchestrator.report.search_tables import (
    Record,
    finalists_table,
    front_table,
    read_search_records,
    read_shared_point,
    shared_line,
)
from orchestrator.report.summary import PARETO, SEARCH_PAGE, show_outputs
from orchestrator.run.driver import plan_and_open
from orchestrator.run.limits import RunLimits
from orchestrator.run.node_checks import check_nodes
from orchestrator.run.on_end import call_on_end, end_message
from orchestrator.run.ray_restarts import handle_end_of_ray, interrupted_by_signal
from orchestrator.run.stages import open_pool
from orchestrator.search.search_in_progress import SearchInProgress
from ttmoe.base import empty_body

_DEFAULTS = {"confirm": "3", "references": "[1, 4, 16]"}
"""Settings of `search` that ``ttmoe tune`` has by default; a search of ``ttmoe run`` trains neither."""


@dataclass(frozen=True)
class TuneRequest:
    """What ``ttmoe tune`` was asked for.

    Attributes:
        config: Path of a config, name of a packaged recipe, or the content of a config.
        overrides: Overrides such as ``search.trials=20``.
        tasks: Tasks to search on; empty for those of the config, or all.
    """

    config: str | Path | Mapping[str, Any]
    overrides: Sequence[str] = ()
    tasks: Sequence[str] = ()

    def load(self) -> LoadedConfig:
        """Load the config with the search that was asked for.

        Raises:
            InputError: If the config is not valid.
        """
        names = [text.partition("=")[0].strip().split(".") for text in self.overrides]
        others = [text for text, name in zip(self.overrides, names, strict=True) if name[0] != "search"]
        search = load_config(self.config, others).config.search
        given = {name[1] for name in names if name[0] == "search" and len(name) > 1}
        given |= search.model_fields_set if search else set()
        added = [f"search.{key}={value}" for key, value in _DEFAULTS.items() if key not in given]
        if "method" not in given:
            # What is given can only be searched by trials: a cut has no other choice than the rank, and no rungs.
            added.append(f"search.method={'tpe' if given & {'space', 'rungs'} else 'truncate'}")
        if len(self.tasks) == 1:
            added += [f"search.task={self.tasks[0]}", "search.tasks=null"]
        elif self.tasks or not given & {"task", "tasks"}:
            added += [f"search.tasks={list(self.tasks) or 'all'}", "search.task=null"]
        return load_config(self.config, [*self.overrides, *added])


@dataclass(frozen=True)
class TuneOutcome:
    """What a search has found.

    Attributes:
        tasks: The record of each task: ``trials``, ``front``, ``finalists``, and the ``winner`` with the ``sections``
            of a task in a config that has it.
        shared: The point with the best mean position over several tasks: ``point``, ``mean_position``, and
            ``accuracies`` by task; None for a single task, or if no point was tried on all.
        report: Path of the report; None if there is none.
    """

    tasks: list[Record]
    shared: Mapping[str, Any] | None
    report: str | None


def show_search(loaded: LoadedConfig, console: Console, *, as_json: bool = False) -> None:
    """Print what the search of a config would do; nothing is trained.

    Raises:
        InputError: The config, the data or the base cannot be used.
    """
    from orchestrator.plan.rank_space import rank_space
    from orchestrator.plan.space import plan_space
    from orchestrator.search.search_forecast import forecast_search
    from orchestrator.search.space_screen import show_space
    from orchestrator.search.trial import read_trial
    from orchestrator.search.tuning import task_trials

    planned = plan_library(loaded, None if as_json else console)
    plan, method = planned.plan, str(loaded.config.search and loaded.config.search.method)
    store = loaded.config.store
    registry = None if store.is_missing else Registry.open(store.uri, store.artifacts, store.source)
    model, make_space = empty_body(plan.base), rank_space if method == "truncate" else plan_space
    spaces = {task: make_space(plan, task, model) for task in plan.config.searched_tasks}
    trials = {task: task_trials(plan, task, space) for task, space in spaces.items()}
    earlier: dict[str, list[Point]] = {}
    for trial in filter(None, map(read_trial, registry.trial_runs(plan.folders.library) if registry else [])):
        is_known = trial.has_ended and trial.seed == 0 and trial.task in trials
        if is_known and trials[trial.task].makes(trial):
            earlier.setdefault(trial.task, []).append(trial.point)
    forecast = forecast_search(plan, planned.state, method, earlier, spaces)
    if registry and _finished(plan, registry):
        forecast = replace(forecast, steps=0, seconds=0.0)
    show_space(forecast, console, as_json=as_json)
    check_trial_fits(plan, plan.nodes)


def tune_library(loaded: LoadedConfig, console: Console) -> TuneOutcome:
    """Run the search of a config, print its tables, and return what it has found.

    A search that has finished is not made again; one that was interrupted goes on. However it ends, ``on_end`` of the
    config is called last.

    Raises:
        InputError: The config, the data or the base cannot be used; raised before any work.
        InfeasibleError: A trial fits on no node; raised before any work.
        WorkFailedError: No trial of a task is measured, or the store stayed unavailable.
        LimitReachedError: A limit of the config was reached.
    """
    made = SearchInProgress(loaded.config.library)
    problem: BaseException | None = None
    try:
        return _plan_and_search(loaded, made, console)
    except BaseException as error:
        problem = error
        raise
    finally:
        if loaded.config.on_end:
            call_on_end(loaded.config.on_end, end_message(made, problem, "search", "trials"), console)


def _plan_and_search(loaded: LoadedConfig, made: SearchInProgress, console: Console) -> TuneOutcome:
    plan, registry = plan_and_open(loaded, console)
    with (
        RunLimits(loaded.config.limits).keep() as limits,
        registry.hold_lease(plan.folders.library, "ttmoe tune", registry.notify) as registry,
    ):
        registry.close_stale(plan.folders.library)
        is_cached = (folder := _finished(plan, registry)) is not None
        if folder is None:
            _search_on_ray(plan, registry, limits, made, console)
            folder = _finished(plan, registry)
    if folder is None:
        return TuneOutcome([], None, None)
    records, shared = read_search_records(folder / TRIALS), read_shared_point(folder / TRIALS)
    if is_cached:
        made.cached = sum(len(record["trials"]) for record in records)
    for record in records:
        console.print(front_table(record))
        if record.get("finalists"):
            console.print(finalists_table(record))
    if shared:
        console.print(shared_line(shared), highlight=False, markup=False)
    files = {SEARCH_PAGE: folder / SEARCH_REPORT, PARETO: folder / PARETO_PLOT}  # an older search has no report
    found = {name: path for name, path in files.items() if path.is_file()}
    show_outputs(found, console)
    report = found.get(SEARCH_PAGE)
    return TuneOutcome(records, shared, None if report is None else str(report))


def _finished(plan: Plan, registry: Registry) -> Path | None:
    return registry.search_artifacts(plan.folders.library, str(plan.search_hash))


def _search_on_ray(plan: Plan, registry: Registry, limits: RunLimits, made: SearchInProgress, console: Console) -> None:
    """Run the search. If an embedded Ray ends by itself, start another and continue."""
    from orchestrator.search.tuning import run_search

    check_spaces(plan)
    plan = fit_memory(plan, empty_body(plan.base))
    check_trial_fits(plan, plan.nodes)
    check_nodes(plan)
    for attempt in itertools.count(1):
        try:
            with (
                interrupted_by_signal(),
                ray_session(),
                LiveView(console) as view,
                open_pool(plan, trial_resources(plan), view) as pool,
            ):
                limits.gpu_seconds = pool.gpu_seconds
                run_search(plan, registry, view, pool, made)
                return
        except ClusterEndedError as error:
            handle_end_of_ray(error, attempt, plan.config.failures.retries, "search", console)
