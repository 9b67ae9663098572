"""``ttmoe run``: what is missing from a library is made, in order; what is there is left alone."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path

from rich.console import Console

from cluster.local import ray_session
from orchestrator.library_lock import library_lock
from orchestrator.live import LiveView
from orchestrator.loading import Loaded, resolved_yaml
from orchestrator.plan import Plan, make_plan
from orchestrator.registry import Registry
from orchestrator.registry.versions import CHAMPION
from ttmoe.errors import WorkFailedError


@dataclass(frozen=True)
class Missing:
    """What the registry does not hold yet."""

    experts: list[str]
    router: bool
    search: bool

    @property
    def any(self) -> bool:
        """Is there anything to do?"""
        return bool(self.experts) or self.router or self.search


def run_library(loaded: Loaded, console: Console) -> None:
    """Plan, run what is missing, and show the library. Typed again after any end, it continues.

    Raises InputError before any work for what cannot work, and WorkFailedError after it for experts that failed.
    """
    with console.status("planning: base, data, adapters"):
        plan = make_plan(loaded.config)
        registry = Registry.open(loaded.config.tracking_uri, plan.layout.artifacts)
    with library_lock(plan.layout.home):
        registry.close_stale(plan.layout.library)
        missing = find_missing(plan, registry)
        _check_search(plan, missing)
        _announce(plan, missing, console)
        if not missing.router:
            _promote(plan, registry)
        if missing.any:
            _work(plan, missing, registry, loaded, console)
        else:
            _summary(plan, registry, loaded, console)


def find_missing(plan: Plan, registry: Registry) -> Missing:
    """Hold the plan against the registry: work is known by its spec hash."""
    library = plan.layout.library
    experts = [task for task, hash_ in plan.lock.items() if registry.find_expert(library, task, hash_) is None]
    router = bool(experts) or registry.find_router(library, plan.router_hash) is None
    search = plan.search_hash is not None and registry.search_artifacts(library, plan.search_hash) is None
    return Missing(experts, router, search)


def _check_search(plan: Plan, missing: Missing) -> None:
    """Raise InputError now, not after the training, for a search that has nothing to choose from."""
    if missing.search:
        from orchestrator.search import planned_space

        planned_space(plan)


def _promote(plan: Plan, registry: Registry) -> None:
    """Let what is there answer: a config that was changed back brings its earlier versions back."""
    library = plan.layout.library
    found = [registry.find_expert(library, task, hash_) for task, hash_ in plan.lock.items()]
    for version in [*found, registry.find_router(library, plan.router_hash)]:
        if version is not None and CHAMPION not in version.aliases:
            registry.promote(version)


def _announce(plan: Plan, missing: Missing, console: Console) -> None:
    cached = [task for task in plan.experts if task not in missing.experts]
    todo = [f"{len(missing.experts)} experts ({', '.join(missing.experts)})"] if missing.experts else []
    todo += ["the router"] if missing.router else []
    todo += [f"a search of {plan.config.search.trials} trials"] if missing.search and plan.config.search else []
    base = f"{plan.base.id} ({plan.base.dtype}, sha256 {plan.base.digest[:12]})"
    console.print(f"library {plan.layout.library} on {base}", highlight=False, soft_wrap=True)
    if cached:
        console.print(f"cached: {', '.join(cached)}", highlight=False, soft_wrap=True)
    console.print(f"to do:  {', '.join(todo) or 'nothing'}", highlight=False, soft_wrap=True)


def _work(plan: Plan, missing: Missing, registry: Registry, loaded: Loaded, console: Console) -> None:
    run = registry.start_run(
        plan.layout.library,
        f"run {datetime.now():%Y-%m-%d %H:%M:%S}",
        _code_version(),
        resolved_yaml(plan.config),
        {"lock": plan.lock, "router": plan.router_hash, "experts": missing.experts, "search": missing.search},
    )
    with registry.ending(run):
        with ray_session(), LiveView(console) as view:
            _stages(plan, missing, registry, run, view)
        registry.log_text(run, _summary(plan, registry, loaded, console), "report.txt")
        for plot in _plots(plan, registry):
            registry.log_file(run, plot)


def _stages(plan: Plan, missing: Missing, registry: Registry, run: str, view: LiveView) -> None:
    from orchestrator.search import run_search
    from orchestrator.stage1 import train_experts
    from orchestrator.stage2 import train_router

    if missing.experts and (failed := train_experts(plan, missing.experts, registry, run, view)):
        raise _failure(plan, failed)
    if missing.router:
        train_router(plan, registry, run, view)
    if missing.search:
        run_search(plan, registry, view)


def _failure(plan: Plan, failed: dict[str, Exception]) -> WorkFailedError:
    kept = [task for task in plan.experts if task not in failed]
    causes = "; ".join(f"{task}: {type(error).__name__}: {error}" for task, error in failed.items())
    logs = ", ".join(str(Path(plan.experts[task].job.folder, "log.txt")) for task in failed)
    return WorkFailedError(
        f"{len(failed)} of {len(plan.experts)} experts failed ({causes}); the router needs them all",
        where=f"library {plan.layout.library}",
        fix=f"see {logs}; type the command again to train what is missing (kept: {', '.join(kept) or 'none'})",
    )


def _summary(plan: Plan, registry: Registry, loaded: Loaded, console: Console) -> str:
    from orchestrator.summary import show_summary

    return show_summary(plan, registry, loaded.source_name, console)


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
