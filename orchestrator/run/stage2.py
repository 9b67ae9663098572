"""Stage 2: features of the frozen base, the router, and the routed model's test on the mixture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.plan.planning import Plan
from orchestrator.pool.work_units import JobRunner, WorkUnit
from orchestrator.progress.live_view import LiveView
from orchestrator.recording.expert_tags import json_tag
from orchestrator.registry import Registry, Version
from orchestrator.registry.artifacts import CONFUSION_PLOT, EVALUATION
from orchestrator.report.plots import plot_confusion
from orchestrator.report.routed_evaluation import summarize_routing
from ttmoe.errors import WorkFailedError
from workers.cache.feature_store import compute_features, feature_folder, features_complete
from workers.routing.depths import compare_depths
from workers.routing.routed_accuracy import RoutedAccuracy, answer_test_split
from workers.routing.router_job import RouterJob, RouterResult, run_router

MODEL = "model"  # the folder that is registered; logs stay beside it


def train_router(
    plan: Plan, registry: Registry, parent: str, runner: JobRunner, view: LiveView, *, compare: bool = False
) -> Version:
    """Train, test and register the router for the experts that the plan's lock names.

    With ``compare``, routers of fewer layers are trained and measured as well.

    Raises WorkFailedError where a part of it failed for good.
    """
    versions = {task: registry.find_expert(plan.folders.library, task, hash_) for task, hash_ in plan.lock.items()}
    folder = plan.work("router", "router", plan.router_hash)
    run = registry.expert_run(
        plan.folders.library,
        parent,
        "router",
        plan.router_hash,
        {f"router.{key}": value for key, value in plan.config.router.model_dump().items()},
    )
    with registry.end_run_on_exit(run):
        files = _features(plan, folder, runner, view)
        data = {task: expert.job.data for task, expert in plan.experts.items()}
        job = RouterJob(plan.base, plan.features, data, files, plan.lock, plan.config.router, plan.config.seed,
                        plan.router_hash, str(folder / MODEL))  # fmt: skip
        result = _router(plan, job, folder, runner, view)
        model = Path(result.folder)
        for task, version in versions.items():
            shutil.copytree(registry.fetch(version), model / "experts" / task, dirs_exist_ok=True)  # type: ignore[arg-type]
        tests = _test(plan, folder, runner, view)
        depths = _depths(plan, job, folder, runner, view) if compare else []
        alone = {task: version.metrics["test.accuracy"] for task, version in versions.items()}  # type: ignore[union-attr]
        evaluation = summarize_routing(result, tests, alone, depths)
        (model / EVALUATION).write_text(json.dumps(evaluation, indent=1))
        plot_confusion(result.confusion, list(result.tasks), model / CONFUSION_PLOT)
        registered = _register(plan, evaluation, model, registry, run)
        for version in versions.values():
            registry.promote(version)  # type: ignore[arg-type]
        return registered


def _features(plan: Plan, folder: Path, runner: JobRunner, view: LiveView) -> dict[str, str]:
    rows, cache = plan.config.router.rows_per_task, plan.folders.cache
    jobs = {task: expert.job for task, expert in plan.experts.items()}
    folders = {task: feature_folder(plan.base, job.data, cache) for task, job in jobs.items()}
    there = [task for task, path in folders.items() if features_complete(path, jobs[task].data, rows)]
    view.stage("Stage 2: features of the frozen base", "task", {task: 0 for task in folders})
    for task in there:
        view.state(task, "cached")
    _all(
        runner,
        [
            _unit(
                plan,
                task,
                compute_features,
                (plan.base, jobs[task].data, rows, cache),
                folder / "features" / task,
                depth=jobs[task].adapter.first_layer,
            )
            for task in folders
            if task not in there
        ],
        view,
    )
    return {task: str(path) for task, path in folders.items()}


def _router(plan: Plan, job: RouterJob, folder: Path, runner: JobRunner, view: LiveView) -> RouterResult:
    view.stage("Stage 2: router", "router", {"router": job.settings.epochs})
    return _all(runner, [WorkUnit.of("router", run_router, (job,), folder)], view)["router"]


def _depths(plan: Plan, job: RouterJob, folder: Path, runner: JobRunner, view: LiveView) -> list[dict[str, Any]]:
    """Routers that read less of the base; their times are measured while no other unit of the run is at work."""
    view.stage("Stage 2: routers of less of the base", "depths", {"depths": 0})
    unit = _unit(plan, "depths", compare_depths, (job, folder / MODEL, plan.trunk), folder / "depths")
    return [asdict(depth) for depth in _all(runner, [unit], view)["depths"]]


def _test(plan: Plan, folder: Path, runner: JobRunner, view: LiveView) -> dict[str, RoutedAccuracy]:
    """Answer every test row through the router."""
    view.stage("Stage 2: the routed model on the mixed test rows", "task", {task: 0 for task in plan.experts})
    units = [
        _unit(plan, task, answer_test_split, (folder / MODEL, plan.base, expert.job.data), folder / "test" / task)
        for task, expert in plan.experts.items()
    ]
    return _all(runner, units, view)


def _register(plan: Plan, evaluation: dict[str, Any], folder: Path, registry: Registry, run: str) -> Version:
    metrics = evaluation["metrics"] | {
        f"routed_accuracy.{task}": test["answered_right"] / test["rows"] for task, test in evaluation["tasks"].items()
    }
    registry.log_metrics(run, [(key, value, 0, 0) for key, value in metrics.items()])
    for name in (EVALUATION, CONFUSION_PLOT):
        registry.log_file(run, folder / name)
    tags = {
        "base": f"{plan.base.source}:{plan.base.id}",
        "base_digest": plan.base.digest,
        "base_revision": plan.base.revision,
        "kind": plan.config.router.kind,
        "features": str(plan.features.layers),
        "metric": f"test.routing_accuracy={evaluation['routing_accuracy']:.4f}",
        **json_tag("lock", plan.lock),
    }
    return registry.register_router(
        plan.folders.library,
        plan.router_hash,
        folder,
        plan.lock,
        run,
        tags,
        metrics=metrics,
        base_folder=Path(plan.base.folder),
        promote=True,
    )


def _unit(plan: Plan, key: str, run: Callable[..., Any], args: tuple, folder: Path, **options: Any) -> WorkUnit:
    job = next(iter(plan.experts.values())).job  # all have the same resources
    return WorkUnit.of(key, run, args, folder, threads=job.threads, device=job.device, **options)


def _all(runner: JobRunner, units: list[WorkUnit], view: LiveView) -> dict[str, Any]:
    """The results of units that must all succeed; raises WorkFailedError for the first that does not."""
    results: dict[str, Any] = {}
    logs = {key: unit.log for unit in units for key in unit.jobs}
    with closing(runner.run(units)) as running:
        for news in running:
            if news is None:
                continue
            for _, progress in news.progress:
                view.progress(news.key, progress)
            if news.failure and not news.done:
                view.state(news.key, "retrying", f"attempt {news.attempt + 1}, {news.action}: {news.failure}")
            elif news.failure:
                view.state(news.key, "failed", str(news.failure))
                fix = f"see {logs[news.key]}; then type the command again: the experts are kept"
                raise WorkFailedError(f"{news.key}: {news.failure}", where="stage 2", fix=fix)
            elif news.done:
                results[news.key] = news.result
                view.state(news.key, "done")
    return results
