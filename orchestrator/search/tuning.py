"""The search over ranks and shapes: Optuna suggests points, Ray Tune decides at rungs, the worker pool trains."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.config.search_settings import SearchSettings
from orchestrator.config.yaml_document import dump_yaml
from orchestrator.plan.forecast import trial_resources, trials_per_job
from orchestrator.plan.planning import Plan
from orchestrator.plan.rank_space import rank_space
from orchestrator.plan.space import plan_space
from orchestrator.pool.work_units import JobRunner
from orchestrator.progress.live_view import LiveView
from orchestrator.recording.descriptions import describe_search
from orchestrator.registry import Registry
from orchestrator.registry.artifacts import PARETO_PLOT, SEARCH_REPORT, TRIALS
from orchestrator.report.figures import save_png
from orchestrator.report.search_charts import draw_trials
from orchestrator.report.search_page import SearchHeader, write_search_report
from orchestrator.search.cut_search import CutSearch, promising_ranks
from orchestrator.search.finalists import small_enough
from orchestrator.search.halving import Halving
from orchestrator.search.repetitions import SearchSize
from orchestrator.search.sampler import Sampler
from orchestrator.search.search_in_progress import SearchInProgress
from orchestrator.search.search_record import TaskRecord, make_task_record
from orchestrator.search.shared_point import find_shared_point
from orchestrator.search.task_search import TaskSearch
from orchestrator.search.trial import Trial
from orchestrator.search.trial_loop import SearchBudget, TrialLoop
from orchestrator.search.trial_runs import TrialRuns
from orchestrator.search.trial_units import TaskTrials, TrialSpace
from ttmoe.adapter import count_lora_parameters, plan_groups
from ttmoe.base import empty_body
from ttmoe.errors import WorkFailedError

_STARTUP_SHARE, _LEAST_STARTUP = 3, 4  # a third of the trials is random, before an estimator is used


def run_search(
    plan: Plan, registry: Registry, view: LiveView, runner: JobRunner, made: SearchInProgress | None = None
) -> list[TaskRecord]:
    """Run the plan's search, and record it in MLflow as it happens: a run for the search, and one for each trial.

    A search that was interrupted goes on: trials that have ended are not made again, and the others resume at their
    last rung. A failed trial does not affect the others.

    Args:
        plan: The plan; its config has a search.
        registry: An open registry.
        view: Shows the trials.
        runner: Runs them; its workers keep the base, and the rows of the task.
        made: Receives how far the search came.

    Returns:
        The record of each task.

    Raises:
        WorkFailedError: No trial of a task is measured.
    """
    if (settings := plan.config.search) is None:
        raise ValueError("the config has no search")
    library, spec = plan.folders.library, str(plan.search_hash)
    tasks = plan.config.searched_tasks
    run = registry.continue_search(library, spec) or registry.start_run(
        library,
        f"search {tasks[0] if len(tasks) == 1 else f'{len(tasks)} tasks'}",
        {"spec_hash": spec, "task": ",".join(tasks)},
        json.dumps(settings.model_dump(), indent=1),
        {"tasks": tasks, "steps": settings.steps},
        search=True,
        token=uuid.uuid4().hex,
    )
    with registry.end_run_on_exit(run):
        view.start_stage(f"Search: ranks and shapes for {', '.join(tasks)}", "trial", {})
        runs = TrialRuns(library, run, registry)
        earlier = runs.read()
        known = runs.known.values() if settings.warm_start else ()
        searches = {
            task: _cut_search(plan, settings, task, earlier)
            if settings.method == "truncate"
            else _task_search(plan, settings, task, earlier, known)
            for task in tasks
        }
        _show_earlier(view, [trial for search, _ in searches.values() for trial in search.trials])
        if made:
            made.run_id, made.trials = run, [search.trials for search, _ in searches.values()]
        budget = _budget(plan, settings)
        loop = TrialLoop(searches, runs, budget, view)
        loop.run(runner, trial_resources(plan))
        usable = {task: pair for task, pair in searches.items() if any(map(_is_usable, pair[0].trials))}
        for task, (search, _) in searches.items():
            if task not in usable:
                if not usable or any(trial.state == "failed" for trial in search.trials):
                    raise _all_failed_error(search)
                view.print(f"{task}: no trial was started before the budget of the search was used up")
        records = [_record(plan, settings, search, trials) for search, trials in usable.values()]
        shared = find_shared_point(
            {task: small_enough(search.trials, settings.max_parameters) for task, (search, _) in usable.items()},
            settings.accuracy_within,
        )
        _log(plan, records, shared, registry, run, plan.work_folder("search", tasks[0], spec))
    return records


def _cut_search(
    plan: Plan, settings: SearchSettings, task: str, earlier: Sequence[Trial]
) -> tuple[CutSearch, TaskTrials]:
    space = rank_space(plan, task, empty_body(plan.base))
    trials = task_trials(plan, task, space)
    retrained = settings.budget.trials if settings.budget else 0
    own = [trial for trial in earlier if trial.task == task]
    ranks, size = space.choices()["rank"], _size(settings, retrained or 0)
    return CutSearch(task, ranks, settings.steps, size, trials.make, own), trials


def _task_search(
    plan: Plan, settings: SearchSettings, task: str, earlier: Sequence[Trial], known: Iterable[Trial]
) -> tuple[TaskSearch, TaskTrials]:
    """Return the search of one task by trials; the sampler learns from ``known`` ones of other searches too.

    Where a training was cut, its first trials have the ranks that did well.
    """
    space = plan_space(plan, task, empty_body(plan.base))
    rungs = settings.rungs
    trials = task_trials(plan, task, space)
    of_task = [trial for trial in known if trial.task == task and trial.seed == 0 and trial.context == trials.context]
    sampler = Sampler(
        space,
        settings.method or "tpe",
        settings.objectives,
        settings.seed,
        max(_LEAST_STARTUP, settings.trials // _STARTUP_SHARE),
        trials.key,
        promising_ranks(of_task),
    )
    for trial in of_task:
        sampler.tell(trial)
    halving = Halving(trials.rungs, rungs.factor if rungs else 2, settings.objectives)
    own = [trial for trial in earlier if trial.task == task]
    return TaskSearch(task, sampler, halving, _size(settings, settings.trials), trials.make, own), trials


def _size(settings: SearchSettings, trials: int) -> SearchSize:
    return SearchSize(
        trials,
        settings.confirm,
        settings.finalists,
        settings.accuracy_within,
        settings.references,
        settings.max_parameters,
    )


def task_trials(plan: Plan, task: str, space: TrialSpace) -> TaskTrials:
    """Return what makes the trials of one of the plan's searched tasks."""
    if (search := plan.config.search) is None:
        raise ValueError("the config has no search")
    folder = plan.work_folder("search", task, str(plan.search_hash)) / "trials"
    return TaskTrials(plan, task, space, search.rung_steps, folder)


def _budget(plan: Plan, settings: SearchSettings) -> SearchBudget:
    limits = [settings.max_parallel, plan.config.resources.max_parallel]
    budget = settings.budget
    return SearchBudget(
        steps=budget.steps if budget else None,
        seconds=budget.minutes * 60 if budget and budget.minutes else None,
        parallel=min((limit for limit in limits if limit is not None), default=None),
        trials_per_unit=trials_per_job(plan),
    )


def _show_earlier(view: LiveView, trials: Sequence[Trial]) -> None:
    for trial in trials:
        if trial.has_ended:
            view.set_state(trial.key, "cached", metrics={"validation.accuracy": trial.accuracy})


def _is_usable(trial: Trial) -> bool:
    return trial.is_measured and trial.origin != "reference"


def _all_failed_error(search: TaskSearch | CutSearch) -> WorkFailedError:
    failed = [trial for trial in search.trials if trial.state == "failed"]
    if not failed:
        what = f"the budget of the search was used up before a trial of {search.task!r} was measured"
        return WorkFailedError(what, where="search.budget", fix="raise it: what was trained is kept")
    first = failed[0].error
    return WorkFailedError(
        f"none of the {len(failed)} trials of {search.task!r} finished; the first: {first}",
        where="search",
        fix="repeat the command to try them again",
    )


def _record(plan: Plan, settings: SearchSettings, search: TaskSearch | CutSearch, trials: TaskTrials) -> TaskRecord:
    groups = plan_groups(empty_body(plan.base), plan.experts[search.task].job.adapter)
    choices = {name: list(options) for name, options in trials.space.choices().items()}
    return make_task_record(
        search.task,
        search.trials,
        settings.accuracy_within,
        settings.max_parameters,
        choices,
        count_lora_parameters(groups),
        trials.config_sections,
    )


def _log(
    plan: Plan,
    records: Sequence[TaskRecord],
    shared: dict[str, Any] | None,
    registry: Registry,
    run: str,
    folder: Path,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = [vars(record) for record in records]
    (folder / TRIALS).write_text(json.dumps({"tasks": found, "shared": shared}, indent=1))
    first = records[0]
    figure = draw_trials(first.trials, first.front, first.task, first.references, first.winner)
    save_png(figure, folder / PARETO_PLOT)
    began = registry.run_record(run).began
    settings = dump_yaml({"search": plan.config.search.model_dump(mode="json")}) if plan.config.search else ""
    seconds = (datetime.now(UTC) - began).total_seconds()
    header = SearchHeader(plan.folders.library, plan.base.id, version("ttmoe"), began, seconds, settings)
    write_search_report(folder / SEARCH_REPORT, header, found, shared)
    for name in (TRIALS, PARETO_PLOT, SEARCH_REPORT):
        registry.log_file(run, folder / name)
    registry.tag_run(run, {"mlflow.note.content": describe_search(found)})
