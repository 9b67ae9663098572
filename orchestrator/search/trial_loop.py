"""Run the trials of one or several tasks on the worker pool, and record each rung as it is reached."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from orchestrator.pool.capacity import JobResources
from orchestrator.pool.work_units import JobEvent, JobRunner, WorkUnit
from orchestrator.progress.live_view import LiveView
from orchestrator.search.cut_search import CutSearch
from orchestrator.search.shared_point import share_winners
from orchestrator.search.task_search import TaskSearch
from orchestrator.search.trial import RungResult, Trial
from orchestrator.search.trial_runs import TrialRuns
from orchestrator.search.trial_units import TaskTrials, make_cutting_unit, make_unit, with_less_memory
from workers.failure import Failure
from workers.tuning.members import CuttingResult
from workers.tuning.trial_job import TrialResult

_FAILURES_AT_FIRST = 3  # trials that fail before any other of the task is measured; then the task is given up
_SHOWN = ("alpha", "lr", "targets", "layers", "head")  # choices besides rank and shape


@dataclass(frozen=True)
class SearchBudget:
    """Limits of all trials of a search together; None for no limit.

    Attributes:
        steps: Optimizer steps.
        seconds: Time after which nothing is started.
        parallel: Units that run at the same time.
        trials_per_unit: Trials of a task that are trained together.
    """

    steps: int | None = None
    seconds: float | None = None
    parallel: int | None = None
    trials_per_unit: int = 1


@dataclass
class TrialLoop:
    """Trains the trials of several tasks until each task has its answer or the budget is used up.

    Attributes:
        searches: The search of each task, and what makes its trials, by task.
        runs: Records the trials.
        budget: Limits.
        view: Shows the progress.
    """

    searches: Mapping[str, tuple[TaskSearch | CutSearch, TaskTrials]]
    runs: TrialRuns
    budget: SearchBudget
    view: LiveView
    _running: dict[str, Trial] = field(default_factory=dict)  # by key
    _units: dict[str, frozenset[str]] = field(default_factory=dict)  # keys of the trials that run with each one
    _started: float = field(default_factory=time.monotonic)
    _is_over: bool = False  # whether the budget is used up

    def run(self, runner: JobRunner, resources: JobResources) -> None:
        """Run the trials.

        Args:
            runner: Runs the work units.
            resources: What a worker of a trial reserves.
        """
        events = runner.run([], with_less_memory, resources, more_units=self._more_units)
        with closing(events):
            for event in events:
                if event:
                    self._handle(event)

    def _more_units(self, count: int) -> Iterator[WorkUnit]:
        """Yield units for at most ``count`` workers; the task with the fewest running trials comes first."""
        if self.budget.parallel:
            count = min(count, self.budget.parallel - len(set(self._units.values())))
        for _ in range(count):
            self._keep_budget()
            unit = self._next_unit()
            if unit is None and not self._running and self._share_winners():
                unit = self._next_unit()
            if unit is None:
                return
            yield unit

    def _next_unit(self) -> WorkUnit | None:
        order = sorted(self.searches, key=lambda task: sum(trial.task == task for trial in self._running.values()))
        return next((unit for unit in map(self._unit_of, order) if unit), None)

    def _share_winners(self) -> bool:
        """Let tasks try each other's winners, once all have their own; return whether there is something to train.

        Tasks that are cut have the same ranks anyway.
        """
        sampled = {task: search for task, (search, _) in self.searches.items() if isinstance(search, TaskSearch)}
        return len(sampled) > 1 and share_winners(sampled, next(iter(sampled.values())).size)

    def _unit_of(self, task: str) -> WorkUnit | None:
        """Return a unit with the next trials of a task, or None if there is none now."""
        search, trials = self.searches[task]
        chosen: list[Trial] = []
        while len(chosen) < self.budget.trials_per_unit and (trial := search.next()):
            known = self.runs.known.get(trial.spec_hash)
            if known and trial.origin != "parent":  # what a parent is cut to is not known
                self._take_known(search, trial, known)
                continue
            self.runs.start(trial)
            chosen.append(trial)
            self._running[trial.key] = trial
        if not chosen:
            return None
        keys = frozenset(trial.key for trial in chosen)
        self._units |= dict.fromkeys(keys, keys)
        jobs = [trials.job(trial, search.next_rung(trial)) for trial in chosen]
        if isinstance(search, CutSearch) and chosen[0].origin == "parent":
            return make_cutting_unit(jobs[0], search.ranks[1:])
        return make_unit(jobs)

    def _take_known(self, search: TaskSearch | CutSearch, trial: Trial, known: Trial) -> None:
        """Take the result that the same trial has in another search."""
        trial.rungs = known.rungs[:-1]
        search.report(trial, known.rungs[-1], ended=True)
        self.runs.record_rung(trial)
        self.view.set_state(trial.key, "cached", _note(trial), {"validation.accuracy": trial.accuracy})

    def _handle(self, event: JobEvent) -> None:
        trial = self._running[event.key]
        for _, progress in event.progress:
            self.view.update(trial.key, progress)
        if isinstance(event.result, TrialResult):
            self._take_result(trial, event.result)
        elif isinstance(event.result, CuttingResult):
            self._take_cuts(trial, event.result)
        elif event.failure and event.done:
            self._take_failure(trial, event.failure)
        elif event.failure:
            self.view.set_state(trial.key, "retrying", f"{event.failure}; {event.action}")

    def _take_result(self, trial: Trial, result: TrialResult) -> None:
        self._end(trial)
        search, trials = self.searches[trial.task]
        rung = RungResult(result.steps, result.accuracy, result.loss, result.seconds)
        search.report(trial, rung, ended=result.ended)
        self.runs.record_rung(trial)
        if trial.state == "stopped":
            trials.remove_files(trial)
        state = {"finished": "done", "stopped": "done", "waiting": "waiting"}[trial.state]
        note = f"{_note(trial)}; stopped at step {trial.steps}" if trial.state == "stopped" else _note(trial)
        self.view.set_state(trial.key, state, note, {"validation.accuracy": trial.accuracy})

    def _take_cuts(self, parent: Trial, result: CuttingResult) -> None:
        self._end(parent)
        search, _ = self.searches[parent.task]
        assert isinstance(search, CutSearch)
        cuts = search.report_cuts(parent, result)
        doubtful = search.doubtful()
        for trial in [*cuts, parent]:  # the parent last: without the cuts it would not count
            self.runs.record_rung(trial)
            kind = "train this rank (search.budget.trials)" if trial in doubtful else trial.origin
            self.view.set_state(trial.key, "done", f"{_note(trial)}; {kind}", {"validation.accuracy": trial.accuracy})

    def _take_failure(self, trial: Trial, failure: Failure) -> None:
        self._end(trial)
        search, trials = self.searches[trial.task]
        search.fail(trial, str(failure))
        self.runs.record_failure(trial)
        trials.remove_files(trial)
        self.view.set_state(trial.key, "failed", str(failure))
        failed = sum(each.state == "failed" for each in search.trials)
        if failed >= _FAILURES_AT_FIRST and not any(each.is_measured for each in search.trials):
            search.stop()

    def _end(self, trial: Trial) -> None:
        del self._running[trial.key]
        del self._units[trial.key]

    def _keep_budget(self) -> None:
        """Stop all searches if a limit is reached."""
        limits = self.budget
        seconds = time.monotonic() - self._started
        if self._is_over:
            return
        if (limits.steps and self.steps >= limits.steps) or (limits.seconds and seconds >= limits.seconds):
            self._is_over = True
            self.view.print("the budget of the search is used up (search.budget): it ends with what it has")
            for search, _ in self.searches.values():
                search.stop()

    @property
    def steps(self) -> int:
        """Optimizer steps of all trials so far, without the running rungs."""
        return sum(trial.steps for search, _ in self.searches.values() for trial in search.trials)


def _note(trial: Trial) -> str:
    return f"{describe(trial)}, {trial.parameters:,} parameters"


def describe(trial: Trial) -> str:
    """Return the point of a trial as text: rank and numbers of factors, and what else was chosen."""
    described = trial.description
    texts = [f"rank {described['rank']}", f"{described['factors']} factors"]
    texts += [f"{name} {trial.point[name]}" for name in _SHOWN if name in trial.point]
    return ", ".join([*texts, *([f"seed {trial.seed}"] if trial.seed else [])])
