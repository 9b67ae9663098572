"""The stages of a run on Ray: missing experts, the router and the search, by one pool of workers."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from cluster.error import ClusterEndedError
from cluster.local import ray_session
from orchestrator.plan.forecast import Forecast
from orchestrator.plan.library_state import LibraryState, read_library_state
from orchestrator.plan.planning import Plan
from orchestrator.pool.capacity import JobResources
from orchestrator.progress.live_view import LiveView
from orchestrator.registry import Registry, Version
from orchestrator.registry.versions import BASE_FOLDER, CHAMPION
from orchestrator.report.incidents import Incident
from orchestrator.run.limits import RunLimits
from orchestrator.run.outcome import experts_failed_error
from orchestrator.run.ray_restarts import handle_end_of_ray, interrupted_by_signal
from orchestrator.run.requirement import unmet_requirement
from orchestrator.run.run_outcome import RunInProgress
from orchestrator.run.stage1 import train_experts
from workers.failure import Failure

if TYPE_CHECKING:
    from orchestrator.pool.worker_pool import WorkerPool


@dataclass(frozen=True)
class RunContext:
    """Everything that the stages of one run need; ``run_id`` is the MLflow run of ``ttmoe run``."""

    plan: Plan
    state: LibraryState
    forecast: Forecast
    registry: Registry
    run_id: str
    view: LiveView
    limits: RunLimits


def open_pool(plan: Plan, resources: JobResources, view: LiveView) -> WorkerPool:
    """Return a pool whose workers reserve these resources, with the settings of a plan."""
    from orchestrator.pool.worker_pool import WorkerPool

    settings, failures = plan.config.resources, plan.config.failures
    return WorkerPool(
        resources,
        failures,
        settings.max_parallel,
        settings.autoscaling,
        failures.stall_minutes * 60,
        view.print,
    )


def run_on_ray(
    plan: Plan,
    state: LibraryState,
    forecast: Forecast,
    registry: Registry,
    run_id: str,
    made: RunInProgress,
    console: Console,
    limits: RunLimits,
) -> Plan:
    """Run the stages on Ray, see ``_run_stages``. If an embedded Ray ends by itself, start another and continue."""
    stage_result = made.stage_result
    for attempt in itertools.count(1):
        try:
            with interrupted_by_signal(), ray_session(), LiveView(console) as view:
                return _run_stages(RunContext(plan, state, forecast, registry, run_id, view, limits), made)
        except ClusterEndedError as error:
            note = partial(_note_end, stage_result.incidents, error, attempt)
            handle_end_of_ray(error, attempt, plan.config.failures.retries, "run", console, note)
        stage_result.failed.clear()  # they are tried again, as by a repeated command
        stage_result.stopped = None
        state = read_library_state(plan, registry)
    raise AssertionError("unreachable")


def _note_end(incidents: list[Incident], error: ClusterEndedError, attempt: int, action: str) -> None:
    failure = Failure("died", type(error).__name__, error.what)
    incidents.append(Incident(time.time(), "Ray", "", attempt, failure, action))


def _run_stages(context: RunContext, made: RunInProgress) -> Plan:
    """Run stage 1, stage 2 and the search as far as they are missing.

    Returns:
        The part of the plan that the router serves.
    """
    plan, state, forecast, registry = context.plan, context.state, context.forecast, context.registry
    stage_result = made.stage_result
    with open_pool(plan, forecast.worker_resources, context.view) as pool:
        context.limits.gpu_seconds = pool.gpu_seconds
        if state.todo:
            train_experts(
                plan,
                state.todo,
                registry.without_retries,
                context.run_id,
                pool,
                context.view,
                forecast.experts_per_job,
                stage_result,
                state.gone,
            )
        stage_result.workers += pool.started
        stage_result.busy_seconds += pool.busy_seconds
        stage_result.waiting_seconds += pool.waiting_seconds
        served = plan.only(plan.experts.keys() - stage_result.failed.keys())
        skipped = {task for task, failure in stage_result.failed.items() if failure.kind == "skipped"}
        unmet = unmet_requirement(
            plan.config.router.require, [task for task in plan.experts if task not in skipped], served.experts
        )
        if stage_result.stopped or unmet:
            raise experts_failed_error(plan, stage_result, unmet)
        library = served.folders.library
        router = registry.find_router(library, served.router_hash)
        if router is None or not registry.has_files(router):
            from orchestrator.run.stage2 import train_router

            router = train_router(served, registry, context.run_id, pool, context.view, forecast.router)
        made.router = router
        promote_library(plan, registry, registry.find_experts(library, served.lock), router)
        if state.search_is_missing:
            from orchestrator.search.tuning import run_search

            run_search(plan, registry, context.view, pool)
    return served


def promote_library(plan: Plan, registry: Registry, experts: dict[str, Version], router: Version | None) -> None:
    """Set the alias ``champion`` on a router and its experts. A config that was changed back has earlier versions.

    The router records where the base is now, because it may have been moved, and commands without a config look there.
    """
    for version in [*experts.values(), router]:
        if version is not None and CHAMPION not in version.aliases:
            registry.promote(version)
    if router is not None and router.tags.get(BASE_FOLDER) != plan.base.folder:
        registry.tag_version(router, {BASE_FOLDER: plan.base.folder})
