"""The search over ranks and shapes of one task: Ray Tune runs the trials, Optuna chooses them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from orchestrator.live import LiveView
from orchestrator.plan import Plan, with_adapter
from orchestrator.plots import plot_pareto
from orchestrator.registry import Registry
from orchestrator.search_space import chosen_adapter, pareto_front, search_space
from ttmoe.adapter import AdapterSpec, count_lora, plan_groups
from ttmoe.base import empty_body
from workers.expert_job import ExpertJob

TRIALS, PARETO_PLOT = "trials.json", "pareto.png"


def run_search(plan: Plan, registry: Registry, view: LiveView) -> None:
    """Run the plan's search and record it: a run with the front, and below it a run for each trial."""
    search = plan.config.search
    assert search is not None
    job = replace(plan.experts[search.task].job, train=plan.config.search_train())
    model = empty_body(plan.base)
    groups = plan_groups(model, job.adapter)
    space = search_space(groups, search)
    run = registry.start_run(plan.layout.library, f"search {search.task}", {"spec_hash": plan.search_hash, "task": search.task},
                             json.dumps(search.model_dump(), indent=1), {"space": space}, search=True)  # fmt: skip
    status = "KILLED"
    try:
        view.stage(f"Search: ranks and shapes for {search.task}", "trial", {})
        trials = _tune(plan, job, space, view)
        record = {"task": search.task, "trials": trials, "front": pareto_front(trials), "space": space,
                  "lora16_parameters": count_lora(groups)}  # fmt: skip
        _record(plan, record, registry, run)
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        registry.finish_run(run, status)


def _record(plan: Plan, record: dict[str, Any], registry: Registry, run: str) -> None:
    folder = plan.work("search", record["task"], str(plan.search_hash))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRIALS).write_text(json.dumps(record, indent=1))
    plot_pareto(record["trials"], record["front"], folder / PARETO_PLOT, f"Ranks and shapes for {record['task']}")
    for name in (TRIALS, PARETO_PLOT):
        registry.log_file(run, folder / name)
    for trial in record["trials"]:
        params = {key: trial[key] for key in ("rank", "cores", "shapes")}
        child = registry.expert_run(plan.layout.library, run, record["task"], trial["spec_hash"], params, search=True)
        now = int(time.time() * 1000)
        registry.log_metrics(child, [(key, trial[key], 0, now) for key in ("accuracy", "loss", "parameters", "seconds")])
        registry.finish_run(child, "FINISHED")


def _tune(plan: Plan, job: ExpertJob, space: dict[str, list[Any]], view: LiveView) -> list[dict[str, Any]]:
    import optuna
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    search, resources = plan.config.search, plan.config.resources
    assert search is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=max(4, search.trials // 3))
    chooser: Any = OptunaSearch(space=lambda trial: {name: trial.suggest_categorical(name, options) for name, options in space.items()} and None,
                                sampler=sampler, metric=["accuracy", "parameters"], mode=["max", "min"])  # fmt: skip
    if search.max_parallel:
        chooser = ConcurrencyLimiter(chooser, search.max_parallel)
    trainable = tune.with_resources(_trainable(plan, job), {"CPU": resources.cpus_per_expert, "GPU": resources.gpus})
    folder = plan.work("search", search.task, str(plan.search_hash))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=chooser, num_samples=search.trials, reuse_actors=True),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0, callbacks=[_watch(view)],
                                  failure_config=tune.FailureConfig(max_failures=1)),
    )  # fmt: skip
    results = tuner.fit()
    if results.errors:
        raise results.errors[0]
    return [{key: result.metrics[key] for key in ("accuracy", "loss", "parameters", "seconds", "rank", "cores", "shapes", "spec_hash")}
            for result in results]  # fmt: skip


def trial_job(plan: Plan, model: Any, job: ExpertJob, choice: dict[str, Any]) -> tuple[ExpertJob, dict[str, Any]]:
    """The job of one choice, and what is recorded of it."""
    adapter: AdapterSpec = replace(job.adapter, **chosen_adapter(job.adapter, choice))
    groups = plan_groups(model, adapter)
    trial = with_adapter(plan, job.task, groups, adapter, job.train)
    shapes = {group.role: str(group.method).removeprefix("tt:") for group in groups}
    cores = max(len(group.method.core_shapes) for group in groups)
    return trial, {"rank": choice["rank"], "cores": cores, "shapes": json.dumps(shapes), "spec_hash": trial.spec_hash}


def _trainable(plan: Plan, job: ExpertJob) -> type:
    from ray import tune

    from workers.trial import TrialBench

    class Trial(tune.Trainable):
        """One trial a step; the process, and the base in it, serves trial after trial."""

        def setup(self, config: dict[str, Any]) -> None:
            self.model, self.bench = empty_body(plan.base), TrialBench.load(job)

        def step(self) -> dict[str, Any]:
            trial, described = trial_job(plan, self.model, job, self.config)
            return {**self.bench.run(trial), **described, "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """A trial is one step: there is nothing to resume from."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """See ``save_checkpoint``."""

    return Trial


def _watch(view: LiveView) -> Any:
    from ray import tune

    class Watch(tune.Callback):
        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            view.state(_name(trial), "training")

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            result = trial.last_result
            note = f"rank {result['rank']}, {result['cores']} cores, {result['parameters']:.0f} parameters"
            view.state(_name(trial), "done", note, {"validation.accuracy": result["accuracy"]})

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            view.state(_name(trial), "failed", "see its error.txt")

    return Watch()


def _name(trial: Any) -> str:
    return str(trial.trial_id).split("_")[-1]
