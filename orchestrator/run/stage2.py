"""Stage 2: compute the router's features, then train, test and register the router."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.plan.json_output import finite
from orchestrator.plan.planning import Plan
from orchestrator.plan.quantities import format_names
from orchestrator.plan.router_forecast import RouterForecast
from orchestrator.pool.capacity import JobResources
from orchestrator.pool.less_memory import Call, with_half_batch, with_half_chunk
from orchestrator.pool.work_units import JobRunner, WorkUnit
from orchestrator.progress.live_view import LiveView
from orchestrator.recording.descriptions import describe_router, describe_router_model
from orchestrator.recording.expert_tags import json_tag
from orchestrator.registry import Registry, Version
from orchestrator.registry.artifacts import ALONE_ACCURACY, CONFUSION_PLOT, EVALUATION
from orchestrator.report.charts import draw_confusion
from orchestrator.report.figures import save_png
from orchestrator.report.routed_evaluation import summarize_routing
from orchestrator.report.twins import find_twins
from orchestrator.run.router_rows import on_sound_features, train_on_growing_rows
from ttmoe.batching import BATCH_ROWS
from ttmoe.errors import WorkFailedError
from workers.cache.feature_store import compute_features, feature_folder, features_complete
from workers.routing.depths import compare_depths
from workers.routing.routed_accuracy import RoutedAccuracy, answer_test_split
from workers.routing.router_job import RouterJob, RouterResult, run_router
from workers.training.settings import TrainSettings

MODEL = "model"  # subfolder with the files to register; logs are outside it


def train_router(
    plan: Plan, registry: Registry, parent: str, runner: JobRunner, view: LiveView, forecast: RouterForecast
) -> Version:
    """Train the router for the experts of the plan's lock, test it on their test splits, and register it.

    The router gets the alias ``champion``, whatever the test shows.

    Args:
        plan: The plan. All experts of its lock must be registered.
        registry: The registry.
        parent: Id of the MLflow run of the ``ttmoe run``, below which the router's run is created.
        runner: Runs the work units, such as a ``WorkerPool``.
        view: Shows the progress.
        forecast: What its jobs reserve, and whether to train routers on fewer layers as well; their accuracy and time
            go to ``evaluation.json``.

    Returns:
        The registered version of the router.

    Raises:
        WorkFailedError: If a work unit failed.
    """
    experts = _registered_experts(plan, registry)
    folder = plan.work_folder("router", "router", plan.router_hash)
    run_id = registry.expert_run(
        plan.folders.library,
        parent,
        "router",
        plan.router_hash,
        {f"router.{key}": value for key, value in plan.config.router.model_dump().items()},
    )
    with registry.end_run_on_exit(run_id):
        data = {task: expert.job.data for task, expert in plan.experts.items()}
        folders = {
            task: str(feature_folder(plan.base, each, plan.folders.cache, plan.stored)) for task, each in data.items()
        }
        job = RouterJob(plan.base, plan.features, data, folders, plan.lock, plan.config.router, plan.config.seed,
                        plan.router_hash, str(folder / MODEL))  # fmt: skip
        compute = partial(_compute_features, plan, folder, runner, view, forecast.features)
        job, result = train_on_growing_rows(
            job, compute, lambda each: _train(each, folder, runner, view, forecast.training)
        )
        model = Path(result.folder)
        for task, expert in experts.items():
            shutil.copytree(registry.fetch(expert), model / "experts" / task, dirs_exist_ok=True)
        routed = _test(plan, folder, runner, view, forecast.testing)
        depths = list[dict]()
        if forecast.compares_depths:
            depths = on_sound_features(
                job, compute, lambda: _compare_depths(plan, job, folder, runner, view, forecast.comparing)
            )
        alone = {task: _accuracy_alone(routed[task], expert) for task, expert in experts.items()}
        groups = plan.config.router.groups
        labels = {task: expert.labels for task, expert in plan.experts.items()}
        twins = [group for group in find_twins(result.tasks, result.confusion, labels)
                 if not any(set(group) <= set(declared) for declared in groups)]  # fmt: skip
        evaluation = summarize_routing(result, routed, alone, depths, groups, twins)
        (model / EVALUATION).write_text(json.dumps(finite(evaluation), indent=1))
        save_png(draw_confusion(evaluation["confusion"], result.tasks), model / CONFUSION_PLOT)
        return _register(plan, evaluation, model, registry, run_id)


def _registered_experts(plan: Plan, registry: Registry) -> dict[str, Version]:
    """Return the version of each task in the plan's lock."""
    found = registry.find_experts(plan.folders.library, plan.lock)
    assert found.keys() == plan.lock.keys(), f"not registered: {format_names(sorted(plan.lock.keys() - found.keys()))}"
    return {task: found[task] for task in plan.lock}


def _compute_features(
    plan: Plan, folder: Path, runner: JobRunner, view: LiveView, resources: JobResources, rows: int
) -> None:
    """Compute the missing router features of at most so many training rows of each task."""
    cache, jobs = plan.folders.cache, {task: expert.job for task, expert in plan.experts.items()}
    cached = [
        task for task, job in jobs.items()
        if features_complete(feature_folder(plan.base, job.data, cache, plan.stored), job.data, rows)
    ]  # fmt: skip
    view.start_stage("Stage 2: features of the frozen base", "task", {task: 0 for task in jobs})
    for task in cached:
        view.set_state(task, "cached")
    units = [
        _work_unit(
            plan,
            task,
            compute_features,
            (plan.base, job.data, rows, cache),
            folder / "features" / task,
            depth=job.adapter.first_layer,
            batch_rows=BATCH_ROWS,
            stored=plan.stored,
            **_engine(plan),
        )
        for task, job in jobs.items()
        if task not in cached
    ]
    _run_units(runner, units, view, _half_batch(plan), resources)


def _train(job: RouterJob, folder: Path, runner: JobRunner, view: LiveView, resources: JobResources) -> RouterResult:
    """Train the router, with all cores that the runner has on a node: no other unit is running."""
    view.start_stage("Stage 2: router", "router", {"router": job.settings.epochs})
    unit = WorkUnit.of("router", run_router, (job,), folder, threads=max(1, int(resources.cpus)))
    return _run_units(runner, [replace(unit, all_cores=True)], view, with_half_chunk, resources)["router"]


def _test(
    plan: Plan, folder: Path, runner: JobRunner, view: LiveView, resources: JobResources
) -> dict[str, RoutedAccuracy]:
    """Answer every test row of every task through the router."""
    view.start_stage("Stage 2: test of the routed model", "task", {task: 0 for task in plan.experts})
    units = [
        _work_unit(
            plan,
            task,
            answer_test_split,
            (folder / MODEL, plan.base, expert.job.data),
            folder / "test" / task,
            batch_rows=BATCH_ROWS,
            alone=expert.named is not None,  # it was trained elsewhere, and tested on other rows or on none
            **_engine(plan),
        )
        for task, expert in plan.experts.items()
    ]
    return _run_units(runner, units, view, _half_batch(plan), resources)


def _accuracy_alone(test: RoutedAccuracy, expert: Version) -> float | None:
    """Return the accuracy of an expert without routing; None for rows without labels."""
    if test.alone_right is not None:
        return test.alone_right / test.rows
    return expert.metrics["test.accuracy"] if test.labelled else None


def _compare_depths(
    plan: Plan, job: RouterJob, folder: Path, runner: JobRunner, view: LiveView, resources: JobResources
) -> list[dict]:
    """Train routers on fewer layers. They measure times, so no other unit of the run may be running."""
    view.start_stage("Stage 2: routers on fewer layers", "depths", {"depths": 0})
    unit = _work_unit(plan, "depths", compare_depths, (job, folder / MODEL, plan.trunk_depth), folder / "depths")
    return [asdict(depth) for depth in _run_units(runner, [unit], view, with_half_chunk, resources)["depths"]]


def _register(plan: Plan, evaluation: dict[str, Any], folder: Path, registry: Registry, run_id: str) -> Version:
    metrics = evaluation["metrics"] | {
        f"routed_accuracy.{task}": test["answered_right"] / test["rows"]
        for task, test in evaluation["tasks"].items()
        if test["labelled"]
    }
    named = [task for task, expert in plan.experts.items() if expert.named]
    alone = {f"{ALONE_ACCURACY}.{task}": evaluation["tasks"][task]["alone"] for task in named}
    metrics |= {name: value for name, value in alone.items() if value is not None}
    registry.log_metrics(run_id, [(key, value, 0, 0) for key, value in metrics.items()])
    for name in (EVALUATION, CONFUSION_PLOT):
        registry.log_file(run_id, folder / name)
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
        run_id,
        tags,
        metrics=metrics,
        base_folder=Path(plan.base.folder),
        description=describe_router(plan, metrics),
        about=describe_router_model(plan.folders.library),
        promote=True,
    )


def _work_unit(plan: Plan, key: str, run: Callable[..., Any], args: tuple, folder: Path, **options: Any) -> WorkUnit:
    job = next(iter(plan.experts.values())).job  # threads and device are the same for all experts
    return WorkUnit.of(key, run, args, folder, threads=job.threads, device=job.device, **options)


def _engine(plan: Plan) -> dict[str, TrainSettings]:
    """Return the option of jobs that need the base: the engine of the trainings, if it divides the base."""
    return {"train": plan.engine} if plan.engine.shards_base else {}


def _half_batch(plan: Plan) -> Callable[[Call], Call | None]:
    return partial(with_half_batch, max_length=plan.base.max_length)


def _run_units(
    runner: JobRunner,
    units: list[WorkUnit],
    view: LiveView,
    reduce_memory: Callable[[Call], Call | None],
    resources: JobResources,
) -> dict[str, Any]:
    """Run units and return their results by key. Raise WorkFailedError for the first unit that fails."""
    results: dict[str, Any] = {}
    logs = {key: unit.log for unit in units for key in unit.jobs}
    with closing(runner.run(units, reduce_memory, resources)) as events:
        for event in events:
            if event is None:
                continue
            for _, progress in event.progress:
                view.update(event.key, progress)
            if event.failure and not event.done:
                view.set_state(event.key, "retrying", f"attempt {event.attempt + 1}, {event.action}: {event.failure}")
            elif event.failure:
                view.set_state(event.key, "failed", str(event.failure))
                fix = f"see {logs[event.key]}, then repeat the command: the experts are kept"
                raise WorkFailedError(f"{event.key}: {event.failure}", where="stage 2", fix=fix)
            elif event.done:
                results[event.key] = event.result
                view.set_state(event.key, "done")
    return results
