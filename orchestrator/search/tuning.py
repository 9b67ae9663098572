"""Search ranks and shapes for one task: Optuna suggests the trials, Ray Tune runs them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from typing import Any

from orchestrator.config.schema import SearchSettings
from orchestrator.plan.planning import Plan
from orchestrator.progress.live_view import LiveView
from orchestrator.registry import Registry
from orchestrator.registry.artifacts import PARETO_PLOT, TRIALS
from orchestrator.report.charts import draw_trials
from orchestrator.report.figures import save_png
from orchestrator.search.space import pareto_front, search_space
from ttmoe.adapter import Group, count_lora_parameters, plan_groups
from ttmoe.base import empty_body
from workers.expert_job import ExpertJob

METRICS = ("accuracy", "loss", "parameters", "seconds")
DESCRIPTION = ("rank", "cores", "factors", "shapes", "spec_hash")


def run_search(plan: Plan, registry: Registry, view: LiveView) -> None:
    """Run the plan's search and record it in MLflow: a run with the Pareto front, and one per trial."""
    search = _settings(plan)
    job = replace(plan.experts[search.task].job, train=plan.config.search_train())
    groups, space = plan_search_space(plan)
    run = registry.start_run(
        plan.folders.library,
        f"search {search.task}",
        {"spec_hash": plan.search_hash, "task": search.task},
        json.dumps(search.model_dump(), indent=1),
        {"space": space},
        search=True,
    )
    with registry.end_run_on_exit(run):
        view.start_stage(f"Search: ranks and shapes for {search.task}", "trial", {})
        trials = _tune(plan, job, space, view)
        record = {
            "task": search.task,
            "trials": trials,
            "front": pareto_front(trials),
            "space": space,
            "lora16_parameters": count_lora_parameters(groups),
        }
        _record(plan, record, registry, run)


def plan_search_space(plan: Plan) -> tuple[list[Group], dict[str, list[Any]]]:
    """Return the adapter's groups that the search varies, and its choices (see ``search_space``).

    Raises:
        InputError: If no choice fits the widths of the base.
    """
    search = _settings(plan)
    groups = plan_groups(empty_body(plan.base), plan.experts[search.task].job.adapter)
    return groups, search_space(groups, search)


def _settings(plan: Plan) -> SearchSettings:
    if plan.config.search is None:
        raise ValueError("the config has no search")
    return plan.config.search


def _record(plan: Plan, record: dict[str, Any], registry: Registry, run: str) -> None:
    folder = plan.work_folder("search", record["task"], str(plan.search_hash))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRIALS).write_text(json.dumps(record, indent=1))
    save_png(draw_trials(record["trials"], record["front"], record["task"]), folder / PARETO_PLOT)
    for name in (TRIALS, PARETO_PLOT):
        registry.log_file(run, folder / name)
    for trial in record["trials"]:
        params = {key: trial[key] for key in ("rank", "factors", "shapes")}
        now = int(time.time() * 1000)
        child = registry.expert_run(
            plan.folders.library,
            run,
            record["task"],
            trial["spec_hash"],
            params,
            search=True,
            metrics=[(key, trial[key], 0, now) for key in METRICS],
        )
        registry.finish_run(child, "FINISHED")


def _tune(plan: Plan, job: ExpertJob, space: dict[str, list[Any]], view: LiveView) -> list[dict[str, Any]]:
    import optuna
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    from orchestrator.search.tune_trial import TrialCallback, TuneTrial

    search = _settings(plan)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=search.seed, n_startup_trials=max(4, search.trials // 3), constant_liar=True
    )
    algorithm: Any = OptunaSearch(
        space=partial(_suggest, space), sampler=sampler, metric=["accuracy", "parameters"], mode=["max", "min"]
    )
    if search.max_parallel:
        algorithm = ConcurrencyLimiter(algorithm, search.max_parallel)
    trainable = tune.with_resources(
        tune.with_parameters(TuneTrial, plan=plan, job=job),
        {"CPU": plan.resources.cpus, "GPU": plan.resources.gpus},
    )
    folder = plan.work_folder("search", search.task, str(plan.search_hash))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=algorithm, num_samples=search.trials, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            callbacks=[TrialCallback(view)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise results.errors[0]
    metrics_by_trial = [results[i].metrics or {} for i in range(len(results))]
    return [{key: metrics[key] for key in METRICS + DESCRIPTION} for metrics in metrics_by_trial]


def _suggest(space: dict[str, list[Any]], trial: Any) -> None:
    for name, options in space.items():
        trial.suggest_categorical(name, options)
