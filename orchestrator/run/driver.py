"""Driver of ``ttmoe run``: train the missing experts, the router and the search of a library, in this order."""

from __future__ import annotations

import subprocess
import uuid
from datetime import datetime
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path

from rich.console import Console

from cluster.jobs import own_job
from orchestrator.config.declared import refuse_declared
from orchestrator.config.loading import LoadedConfig, resolved_yaml
from orchestrator.plan.folders import LibraryFolders
from orchestrator.plan.forecast import Forecast, check_feasible, check_router_fits, check_search_fits, make_forecast
from orchestrator.plan.library_state import LibraryState, read_library_state
from orchestrator.plan.memory_fit import fit_memory
from orchestrator.plan.planning import Plan, make_plan
from orchestrator.plan.quantities import format_names
from orchestrator.plan.search_space import check_search_space
from orchestrator.registry import Registry, Version
from orchestrator.registry.expert_models import select_versions
from orchestrator.run.limits import RunLimits
from orchestrator.run.node_checks import check_nodes
from orchestrator.run.on_end import call_on_end, end_message
from orchestrator.run.outcome import experts_failed_error, log_report
from orchestrator.run.run_outcome import RunInProgress, RunOutcome
from orchestrator.run.stages import promote_library, run_on_ray
from ttmoe.base import empty_body
from ttmoe.errors import PartFailedError, WorkFailedError

_MOST_LISTED = 20  # tasks that a line of the terminal lists


def run_library(loaded: LoadedConfig, console: Console) -> RunOutcome:
    """Plan a library, train what is missing, and show the result. Repeated after any end, it continues.

    However it ends, ``on_end`` of the config is called last.

    Args:
        loaded: The config.
        console: Prints the progress and the result.

    Returns:
        The experts, the router and the report.

    Raises:
        InputError: The config, the data or the base cannot be used; raised before any work.
        InfeasibleError: An expert or the router fits on no node; raised before any work.
        WorkFailedError: Experts failed, or the store stayed unavailable; finished experts are kept. Its attribute
            ``outcome`` is what would have been returned, as far as the run came.
        LimitReachedError: A limit of the config was reached.
    """
    made = RunInProgress(loaded.config.library, tuple(loaded.config.tasks))
    problem: BaseException | None = None
    try:
        _plan_and_run(loaded, made, console)
        return made.outcome()
    except BaseException as error:
        problem = error
        if isinstance(error, WorkFailedError):
            error.outcome = made.outcome()
        raise
    finally:
        if loaded.config.on_end:
            call_on_end(loaded.config.on_end, end_message(made.outcome(), problem), console)


def _plan_and_run(loaded: LoadedConfig, made: RunInProgress, console: Console) -> None:
    """Do what ``run_library`` does, and keep in ``made`` how far it came."""
    plan, registry = plan_and_open(loaded, console)
    with (
        RunLimits(loaded.config.limits).keep() as limits,
        registry.hold_lease(plan.folders.library, "ttmoe run", registry.notify) as registry,
    ):
        registry.close_stale(plan.folders.library)
        state = read_library_state(plan, registry)
        check_search_space(plan, state)
        _print_todo(plan, state, console)
        experts = select_versions(state.versions, plan.lock)
        made.named = frozenset(task for task, expert in plan.experts.items() if expert.named)
        made.cached = {task: version for task, version in experts.items() if task not in state.todo}
        if state.router.state == "cached":
            made.router = state.router.version
            promote_library(plan, registry, experts, state.router.version)
        if not state.has_work:
            _show_summary(plan, experts, registry, loaded, console)
            return
        plan = fit_memory(plan, empty_body(plan.base))
        check_feasible(plan, plan.nodes, state.todo or plan.experts)
        check_router_fits(plan, state, plan.nodes)
        check_search_fits(plan, state, plan.nodes)
        check_nodes(plan)
        forecast = make_forecast(plan, state, plan.nodes)
        _execute(plan, state, forecast, registry, loaded, made, console, limits)


def plan_and_open(loaded: LoadedConfig, console: Console) -> tuple[Plan, Registry]:
    """Plan a config, and open its store with retries; a plan that fails creates no file."""
    refuse_declared(loaded.config)
    with console.status("planning: base, data, adapters"):
        LibraryFolders.of(loaded.config).check(loaded.config.store)
        store = loaded.config.store
        # A server is asked before the planning, which takes longer.
        opened = None if store.is_missing else Registry.open(store.uri, store.artifacts, store.source)
        plan = make_plan(loaded.config, registry=opened)
        registry = (opened or Registry.open(store.uri, store.artifacts, store.source)).with_retries(
            loaded.config.failures.tracking_minutes * 60, partial(console.print, soft_wrap=True)
        )
    return plan, registry


def _print_todo(plan: Plan, state: LibraryState, console: Console) -> None:
    missing = state.todo
    cached = [task for task in plan.experts if task not in missing]
    todo = []
    if missing:
        noun = "expert" if len(missing) == 1 else "experts"
        todo.append(f"{len(missing)} {noun} ({format_names(missing, _MOST_LISTED)})")
    if state.router.state != "cached":
        todo.append("the router")
    if plan.config.search and state.search_is_missing:
        method, trials = plan.config.search.method, plan.config.search.trials
        todo.append("a search by cutting" if method == "truncate" else f"a search of {trials} trials")
    lines = [f"Library {plan.folders.library} on {plan.base_text}"]
    lines += [f"Cached: {format_names(cached, _MOST_LISTED)}"] if cached else []
    for line in [*lines, f"To do: {', '.join(todo) or 'nothing'}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _execute(
    plan: Plan,
    state: LibraryState,
    forecast: Forecast,
    registry: Registry,
    loaded: LoadedConfig,
    made: RunInProgress,
    console: Console,
    limits: RunLimits,
) -> None:
    """Run the missing stages within an MLflow run, show the summary and write the report."""
    made.run_id = run_id = registry.start_run(
        plan.folders.library,
        f"run {datetime.now():%Y-%m-%d %H:%M:%S}",
        _code_version() | ({"job": job} if (job := own_job()) else {}),
        resolved_yaml(plan.config),
        {
            "lock": plan.lock,
            "router": plan.router_hash,
            "experts": state.todo,
            "search": state.search_is_missing,
        },
        token=uuid.uuid4().hex,
    )
    stage_result, status = made.stage_result, "KILLED"
    with registry.end_run_on_exit(run_id):
        try:
            served = run_on_ray(plan, state, forecast, registry, run_id, made, console, limits)
            experts = registry.find_experts(served.folders.library, served.lock)
            _show_summary(served, experts, registry, loaded, console, stage_result.usage.time.describe())
            _log_plots(served, registry, run_id)
            status = "FINISHED"
            if stage_result.failed:
                consequence = f"the router serves the other {len(served.experts)}"
                raise experts_failed_error(plan, stage_result, consequence, PartFailedError)
        except Exception:
            status = "FAILED"
            raise
        finally:
            if status != "KILLED":  # an interrupted command must end without delay
                made.report = log_report(plan, stage_result, registry.without_retries, run_id, status, console)
                if made.report and status == "FINISHED":
                    console.print(f"\nReport: {made.report}", highlight=False, markup=False, soft_wrap=True)


def _show_summary(
    plan: Plan,
    experts: dict[str, Version],
    registry: Registry,
    loaded: LoadedConfig,
    console: Console,
    time_use: str = "",
) -> None:
    from orchestrator.report.summary import show_summary

    show_summary(plan, experts, registry, loaded, time_use, console)


def _log_plots(plan: Plan, registry: Registry, run_id: str) -> None:
    from orchestrator.report.summary import plots

    for path in plots(plan, registry).values():
        registry.log_file(run_id, path)


def _code_version() -> dict[str, str]:
    """Return the package's version and, in a git checkout with git installed, the commit as tags of a run."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # without git, or no checkout
        return {"version": installed("ttmoe")}
    return {"version": installed("ttmoe"), "mlflow.source.git.commit": git.stdout.strip()}
