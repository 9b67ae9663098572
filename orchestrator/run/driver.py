"""``ttmoe run``: what is missing from a library is made, in order; what is there is left alone."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from cluster.local import ray_session
from orchestrator.config.loading import LoadedConfig, resolved_yaml
from orchestrator.plan.forecast import Forecast, check_feasible, check_router_fits, make_forecast
from orchestrator.plan.library_state import LibraryState, read_library_state
from orchestrator.plan.nodes import available_nodes
from orchestrator.plan.planning import Plan, make_plan
from orchestrator.pool.work_units import LOG_FILE
from orchestrator.progress.live_view import LiveView
from orchestrator.recording.registrar import Stage1Result
from orchestrator.registry import Registry
from orchestrator.registry.artifacts import INCIDENTS, REPORT
from orchestrator.registry.driver_lock import driver_lock
from orchestrator.registry.versions import CHAMPION
from orchestrator.report import collect_report, write_report
from orchestrator.report.incidents import incidents_to_json
from orchestrator.run.requirement import unmet_requirement
from orchestrator.run.stage1 import train_experts
from ttmoe.errors import WorkFailedError


@dataclass(frozen=True)
class RunContext:
    """A run under way: what it is for, and who is told."""

    plan: Plan
    standing: LibraryState
    outlook: Forecast
    registry: Registry
    run: str
    view: LiveView


def run_library(loaded: LoadedConfig, console: Console) -> None:
    """Plan, run what is missing, and show the library. Typed again after any end, it continues.

    Raises InputError before any work for what cannot work, InfeasibleError for what fits on no node, and
    WorkFailedError after the work for experts that failed.
    """
    with console.status("planning: base, data, adapters"):
        plan = make_plan(loaded.config)
        registry = Registry.open(loaded.config.tracking_uri, plan.folders.artifacts).with_retries(
            loaded.config.failures.tracking_minutes * 60, partial(console.print, soft_wrap=True)
        )
    with driver_lock(plan.folders.home):
        registry.close_stale(plan.folders.library)
        standing = read_library_state(plan, registry)
        _check_search(plan, standing)
        _announce(plan, standing, console)
        if standing.router.state == "cached":
            _promote(plan, registry)
        if standing.any:
            nodes = available_nodes()
            check_feasible(plan, nodes, standing.todo or plan.experts)
            check_router_fits(plan, standing, nodes)
            _work(plan, standing, make_forecast(plan, standing, registry, nodes), registry, loaded, console)
        else:
            _summary(plan, registry, loaded, console)


def _check_search(plan: Plan, standing: LibraryState) -> None:
    """Raise InputError now, not after the training, for a search that has nothing to choose from."""
    if standing.search and standing.search.state != "cached":
        from orchestrator.search.tuning import plan_search_space

        plan_search_space(plan)


def _promote(plan: Plan, registry: Registry) -> None:
    """Let what is there answer: a config that was changed back brings its earlier versions back."""
    library = plan.folders.library
    found = [registry.find_expert(library, task, hash_) for task, hash_ in plan.lock.items()]
    for version in [*found, registry.find_router(library, plan.router_hash)]:
        if version is not None and CHAMPION not in version.aliases:
            registry.promote(version)


def _announce(plan: Plan, standing: LibraryState, console: Console) -> None:
    missing = standing.todo
    cached = [task for task in plan.experts if task not in missing]
    todo = [f"{len(missing)} experts ({_listed(missing)})"] if missing else []
    todo += ["the router"] if standing.router.state != "cached" else []
    if plan.config.search and standing.search and standing.search.state != "cached":
        todo.append(f"a search of {plan.config.search.trials} trials")
    base = f"{plan.base.id} ({plan.base.dtype}, sha256 {plan.base.digest[:12]})"
    console.print(f"library {plan.folders.library} on {base}", highlight=False, soft_wrap=True)
    if cached:
        console.print(f"cached: {_listed(cached)}", highlight=False, soft_wrap=True)
    console.print(f"to do:  {', '.join(todo) or 'nothing'}", highlight=False, soft_wrap=True)


def _listed(tasks: list[str], most: int = 20) -> str:
    return ", ".join(tasks[:most]) + (f" and {len(tasks) - most} more" if len(tasks) > most else "")


def _work(
    plan: Plan, standing: LibraryState, outlook: Forecast, registry: Registry, loaded: LoadedConfig, console: Console
) -> None:
    run = registry.start_run(
        plan.folders.library,
        f"run {datetime.now():%Y-%m-%d %H:%M:%S}",
        _code_version(),
        resolved_yaml(plan.config),
        {
            "lock": plan.lock,
            "router": plan.router_hash,
            "experts": standing.todo,
            "search": bool(standing.search and standing.search.state != "cached"),
        },
    )
    trained, status = Stage1Result(), "KILLED"
    with registry.end_run_on_exit(run):
        try:
            with ray_session(), LiveView(console) as view:
                library = _stages(RunContext(plan, standing, outlook, registry, run, view), trained)
            _summary(library, registry, loaded, console)
            for plot in _plots(library, registry):
                registry.log_file(run, plot)
            status = "FINISHED"
            if trained.failed:
                raise _failure(plan, trained, f"the router answers for the other {len(library.experts)}")
        except Exception:
            status = "FAILED"
            raise
        finally:
            if status != "KILLED":  # whoever stops a run does not wait for its report
                _record(plan, trained, registry.without_retries, run, status, console)


def _stages(work: RunContext, trained: Stage1Result) -> Plan:
    """All that is missing; the part of the plan that the router answers for. Fills ``trained``."""
    from orchestrator.pool.worker_pool import WorkerPool

    plan, registry, standing = work.plan, work.registry, work.standing
    resources, failures = plan.config.resources, plan.config.failures
    with WorkerPool(
        work.outlook.need, failures, resources.max_parallel, resources.autoscaling, failures.stall_minutes * 60
    ) as crew:
        if standing.todo:
            train_experts(
                plan,
                standing.todo,
                registry.without_retries,
                work.run,
                crew,
                work.view,
                work.outlook.experts_per_job,
                trained,
            )
        trained.workers = crew.started
        library = plan.only(plan.experts.keys() - trained.failed.keys())
        if trained.stopped or (
            lacking := unmet_requirement(plan.config.router.require, list(plan.experts), library.experts)
        ):
            raise _failure(plan, trained, "" if trained.stopped else lacking)
        if registry.find_router(library.folders.library, library.router_hash) is None:
            from orchestrator.run.stage2 import train_router

            compare = work.outlook.router.compares_depths
            train_router(library, registry, work.run, crew, work.view, compare=compare)
        else:
            _promote(library, registry)
    if standing.search and standing.search.state != "cached":
        from orchestrator.search.tuning import run_search

        run_search(plan, registry, work.view)
    return library


def _failure(plan: Plan, trained: Stage1Result, then: str) -> WorkFailedError:
    failed = list(trained.failed.items())
    causes = "; ".join(f"{task}: {failure}" for task, failure in failed[:5])
    more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
    logs = ", ".join(str(Path(plan.experts[task].job.folder, LOG_FILE)) for task, _ in failed[:5])
    rest = f"the first {len(failed)} failed alike, so the others were not tried" if trained.stopped else then
    kept = list(trained.versions) if trained.stopped else [task for task in plan.experts if task not in trained.failed]
    return WorkFailedError(
        f"{len(failed)} of {len(plan.experts)} experts failed ({causes}{more}); {rest}",
        where=f"library {plan.folders.library}",
        fix=f"see {logs}; type the command again to train what is missing (kept: {_listed(kept, 5) or 'none'})",
    )


def _record(plan: Plan, trained: Stage1Result, registry: Registry, run: str, status: str, console: Console) -> None:
    """Leave the report on the run's page; what keeps it from being made must not hide what the run ended with."""
    try:
        if trained.incidents:
            registry.log_text(run, incidents_to_json(trained.incidents), INCIDENTS)
        router = plan.only(plan.experts.keys() - trained.failed.keys()).router_hash
        content = collect_report(
            plan, registry, run, trained.incidents, trained.usage, router_hash=router, status=status
        )
        with TemporaryDirectory() as scratch:
            path = Path(scratch, REPORT)
            write_report(path, content)
            registry.log_file(run, path)
    except Exception as error:
        console.print(f"the run's report was not written: {error}", soft_wrap=True, highlight=False, markup=False)


def _summary(plan: Plan, registry: Registry, loaded: LoadedConfig, console: Console) -> None:
    from orchestrator.report.summary import show_summary

    show_summary(plan, registry, loaded.source_name, console)


def _plots(plan: Plan, registry: Registry) -> list[Path]:
    from orchestrator.report.summary import plots

    return list(plots(plan, registry).values())


def _code_version() -> dict[str, str]:
    """What made a run: the package's version, and the commit where the package lies in a checkout."""
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    commit = {"mlflow.source.git.commit": found.stdout.strip()} if found.returncode == 0 else {}
    return {"version": installed("ttmoe"), **commit}
