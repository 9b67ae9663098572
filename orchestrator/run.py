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
from orchestrator.forecast import Forecast, check_feasible, check_router_fits, forecast, nodes_here
from orchestrator.incidents import FILE as INCIDENTS
from orchestrator.incidents import to_json
from orchestrator.library_lock import library_lock
from orchestrator.live import LiveView
from orchestrator.loading import Loaded, resolved_yaml
from orchestrator.plan import Plan, make_plan
from orchestrator.registry import Registry
from orchestrator.registry.versions import CHAMPION
from orchestrator.report import collect, write_report
from orchestrator.requirement import unmet
from orchestrator.stage1 import Trained, train_experts
from orchestrator.standing import Standing, hold
from orchestrator.units import LOG
from ttmoe.errors import WorkFailedError


@dataclass(frozen=True)
class Work:
    """A run under way: what it is for, and who is told."""

    plan: Plan
    standing: Standing
    outlook: Forecast
    registry: Registry
    run: str
    view: LiveView


def run_library(loaded: Loaded, console: Console) -> None:
    """Plan, run what is missing, and show the library. Typed again after any end, it continues.

    Raises InputError before any work for what cannot work, InfeasibleError for what fits on no node, and
    WorkFailedError after the work for experts that failed.
    """
    with console.status("planning: base, data, adapters"):
        plan = make_plan(loaded.config)
        registry = Registry.open(loaded.config.tracking_uri, plan.layout.artifacts).waiting(
            loaded.config.failures.tracking_minutes * 60, partial(console.print, soft_wrap=True)
        )
    with library_lock(plan.layout.home):
        registry.close_stale(plan.layout.library)
        standing = hold(plan, registry)
        _check_search(plan, standing)
        _announce(plan, standing, console)
        if standing.router.state == "cached":
            _promote(plan, registry)
        if standing.any:
            nodes = nodes_here()
            check_feasible(plan, nodes, standing.todo or plan.experts)
            check_router_fits(plan, standing, nodes)
            _work(plan, standing, forecast(plan, standing, registry, nodes), registry, loaded, console)
        else:
            _summary(plan, registry, loaded, console)


def _check_search(plan: Plan, standing: Standing) -> None:
    """Raise InputError now, not after the training, for a search that has nothing to choose from."""
    if standing.search and standing.search.state != "cached":
        from orchestrator.search import planned_space

        planned_space(plan)


def _promote(plan: Plan, registry: Registry) -> None:
    """Let what is there answer: a config that was changed back brings its earlier versions back."""
    library = plan.layout.library
    found = [registry.find_expert(library, task, hash_) for task, hash_ in plan.lock.items()]
    for version in [*found, registry.find_router(library, plan.router_hash)]:
        if version is not None and CHAMPION not in version.aliases:
            registry.promote(version)


def _announce(plan: Plan, standing: Standing, console: Console) -> None:
    missing = standing.todo
    cached = [task for task in plan.experts if task not in missing]
    todo = [f"{len(missing)} experts ({_listed(missing)})"] if missing else []
    todo += ["the router"] if standing.router.state != "cached" else []
    if plan.config.search and standing.search and standing.search.state != "cached":
        todo.append(f"a search of {plan.config.search.trials} trials")
    base = f"{plan.base.id} ({plan.base.dtype}, sha256 {plan.base.digest[:12]})"
    console.print(f"library {plan.layout.library} on {base}", highlight=False, soft_wrap=True)
    if cached:
        console.print(f"cached: {_listed(cached)}", highlight=False, soft_wrap=True)
    console.print(f"to do:  {', '.join(todo) or 'nothing'}", highlight=False, soft_wrap=True)


def _listed(tasks: list[str], most: int = 20) -> str:
    return ", ".join(tasks[:most]) + (f" and {len(tasks) - most} more" if len(tasks) > most else "")


def _work(
    plan: Plan, standing: Standing, outlook: Forecast, registry: Registry, loaded: Loaded, console: Console
) -> None:
    run = registry.start_run(
        plan.layout.library,
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
    trained, status = Trained(), "KILLED"
    with registry.ending(run):
        try:
            with ray_session(), LiveView(console) as view:
                library = _stages(Work(plan, standing, outlook, registry, run, view), trained)
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
                _record(plan, trained, registry.at_once, run, status, console)


def _stages(work: Work, trained: Trained) -> Plan:
    """All that is missing; the part of the plan that the router answers for. Fills ``trained``."""
    from orchestrator.crew import Crew

    plan, registry, standing = work.plan, work.registry, work.standing
    resources, failures = plan.config.resources, plan.config.failures
    with Crew(
        work.outlook.need, failures, resources.max_parallel, resources.autoscaling, failures.stall_minutes * 60
    ) as crew:
        if standing.todo:
            train_experts(
                plan, standing.todo, registry.at_once, work.run, crew, work.view, work.outlook.experts_per_job, trained
            )
        trained.workers = crew.started
        library = plan.only(plan.experts.keys() - trained.failed.keys())
        if trained.stopped or (lacking := unmet(plan.config.router.require, list(plan.experts), library.experts)):
            raise _failure(plan, trained, "" if trained.stopped else lacking)
        if registry.find_router(library.layout.library, library.router_hash) is None:
            from orchestrator.stage2 import train_router

            train_router(library, registry, work.run, crew, work.view)
        else:
            _promote(library, registry)
    if standing.search and standing.search.state != "cached":
        from orchestrator.search import run_search

        run_search(plan, registry, work.view)
    return library


def _failure(plan: Plan, trained: Trained, then: str) -> WorkFailedError:
    failed = list(trained.failed.items())
    causes = "; ".join(f"{task}: {failure}" for task, failure in failed[:5])
    more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
    logs = ", ".join(str(Path(plan.experts[task].job.folder, LOG)) for task, _ in failed[:5])
    rest = f"the first {len(failed)} failed alike, so the others were not tried" if trained.stopped else then
    kept = list(trained.versions) if trained.stopped else [task for task in plan.experts if task not in trained.failed]
    return WorkFailedError(
        f"{len(failed)} of {len(plan.experts)} experts failed ({causes}{more}); {rest}",
        where=f"library {plan.layout.library}",
        fix=f"see {logs}; type the command again to train what is missing (kept: {_listed(kept, 5) or 'none'})",
    )


def _record(plan: Plan, trained: Trained, registry: Registry, run: str, status: str, console: Console) -> None:
    """Leave the report on the run's page; what keeps it from being made must not hide what the run ended with."""
    try:
        if trained.incidents:
            registry.log_text(run, to_json(trained.incidents), INCIDENTS)
        router = plan.only(plan.experts.keys() - trained.failed.keys()).router_hash
        content = collect(plan, registry, run, trained.incidents, trained.usage, router_hash=router, status=status)
        with TemporaryDirectory() as scratch:
            path = Path(scratch, "report.html")
            write_report(path, content)
            registry.log_file(run, path)
    except Exception as error:
        console.print(f"the run's report was not written: {error}", soft_wrap=True, highlight=False, markup=False)


def _summary(plan: Plan, registry: Registry, loaded: Loaded, console: Console) -> None:
    from orchestrator.summary import show_summary

    show_summary(plan, registry, loaded.source_name, console)


def _plots(plan: Plan, registry: Registry) -> list[Path]:
    from orchestrator.summary import plots

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
