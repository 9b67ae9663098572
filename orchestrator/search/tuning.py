"""Search ranks and shapes for one task: Optuna suggests the trials, Ray Tune runs them."""

from __future__ import annotations

import json
import logging
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from cluster.local import kept_handler
from orchestrator.plan.forecast import trial_resources
from orchestrator.plan.planning import Plan
from orchestrator.plan.search_space import plan_search_space
from orchestrator.progress.live_view import LiveView
from orchestrator.registry import Registry
from orchestrator.registry.artifacts import PARETO_PLOT, TRIALS
from orchestrator.report.charts import draw_trials
from orchestrator.report.figures import save_png
from orchestrator.search.pareto import pareto_front
from orchestrator.search.suggestions import Suggestions
from orchestrator.search.trial_records import TrialRecords
from ttmoe.adapter import count_lora_parameters
from ttmoe.base import empty_body
from ttmoe.errors import WorkFailedError
from workers.expert_job import ExpertJob

_NO_HANDLER = "TUNE_DISABLE_SIGINT_HANDLER"  # a variable that Tune reads


def run_search(plan: Plan, registry: Registry, view: LiveView) -> None:
    """Run the plan's search and record it in MLflow: a run with the Pareto front, and one per trial as it ends.

    Trials that finished before an interruption are not made again. A failed trial does not affect the others.

    Raises:
        WorkFailedError: If no trial finishes.
    """
    if (search := plan.config.search) is None:
        raise ValueError("the config has no search")
    groups, space = plan_search_space(plan)
    (task,) = plan.config.searched_tasks
    run = registry.start_run(
        plan.folders.library,
        f"search {task}",
        {"spec_hash": plan.search_hash, "task": task},
        json.dumps(search.model_dump(), indent=1),
        {"space": space},
        search=True,
        token=uuid.uuid4().hex,
    )
    with registry.end_run_on_exit(run):
        view.start_stage(f"Search: ranks and shapes for {task}", "trial", {})
        folder = plan.work_folder("search", task, str(plan.search_hash))
        records = TrialRecords(folder, plan.folders.library, task, registry, run)
        suggestions = Suggestions(space, search, earlier := records.read_earlier(space))
        for trial in earlier:
            view.set_state(trial["spec_hash"][:8], "cached", metrics={"validation.accuracy": trial["accuracy"]})
        if suggestions.left > 0:
            job = replace(plan.experts[task].job, train=plan.config.search_train(task))
            _tune(plan, job, suggestions, records, view)
        if not records.finished:
            raise _all_failed_error(records)
        record = {
            "task": task,
            "trials": records.finished,
            "failed": records.failed,
            "front": pareto_front(records.finished),
            "space": space,
            "lora16_parameters": count_lora_parameters(groups),
        }
        (folder / TRIALS).write_text(json.dumps(record, indent=1))
        save_png(draw_trials(records.finished, pareto_front(records.finished), task), folder / PARETO_PLOT)
        for name in (TRIALS, PARETO_PLOT):
            registry.log_file(run, folder / name)


def max_parallel_trials(plan: Plan) -> int | None:
    """Return how many trials may run at once: the smaller limit of the search and of the run; None without any."""
    limits = [plan.config.search.max_parallel if plan.config.search else None, plan.config.resources.max_parallel]
    return min((limit for limit in limits if limit is not None), default=None)


def _all_failed_error(records: TrialRecords) -> WorkFailedError:
    first = records.failed[0]["error"] if records.failed else "none was started"
    return WorkFailedError(
        f"none of the {len(records.failed)} trials of the search finished; the first: {first}",
        where="search",
        fix="repeat the command to try them again",
    )


def _tune(plan: Plan, job: ExpertJob, suggestions: Suggestions, records: TrialRecords, view: LiveView) -> None:
    from ray import tune

    from orchestrator.search.tune_trial import SuggestedChoices, TrialCallback, TuneTrial, trial_job

    reserved = trial_resources(plan)
    model = empty_body(plan.base)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TuneTrial, plan=plan, job=job),
            {"CPU": reserved.cpus, "GPU": reserved.gpus, "memory": reserved.memory},
        ),
        tune_config=tune.TuneConfig(
            search_alg=SuggestedChoices(suggestions),
            num_samples=suggestions.left,
            max_concurrent_trials=max_parallel_trials(plan),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(records.folder.parent),
            verbose=0,
            callbacks=[TrialCallback(view, records, lambda choice: trial_job(plan, model, job, choice)[1])],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    with _quiet_tune():
        tuner.fit()


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keep Tune from handling signals and printing within the context; a notebook may use it for its own trials after.

    Its handler of SIGINT would swallow Ctrl-C: it ends the loop as if all trials had ended. Its log would have the
    traceback of a failed trial, whose error the live view and the trial's run have.
    """
    log, before = logging.getLogger("ray.tune"), os.environ.get(_NO_HANDLER)
    level = log.level
    os.environ[_NO_HANDLER] = "1"
    log.setLevel(logging.CRITICAL)
    try:
        with kept_handler(signal.SIGUSR1):
            yield
    finally:
        log.setLevel(level)
        os.environ.pop(_NO_HANDLER, None)
        if before is not None:
            os.environ[_NO_HANDLER] = before
