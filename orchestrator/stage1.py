"""Stage 1: every expert that is not registered yet is trained in a unit of work, and registered as it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator.expert_record import run_params, version_tags
from orchestrator.failure_policy import hopeless
from orchestrator.incidents import Incident
from orchestrator.live import LiveView
from orchestrator.packing import packed
from orchestrator.plan import Plan
from orchestrator.recorder import Done, Recorder
from orchestrator.registry import Registry, Version, is_away, stayed_away
from orchestrator.report import Usage
from orchestrator.units import LOG, News, Runner, Unit, run_together
from workers.expert_job import ExpertJob, ExpertResult, finished_result, run_experts
from workers.failure import Failure, failure_of
from workers.progress import Progress

STAGE = "Stage 1: experts"
BETWEEN_LOGS = 5.0  # seconds between writes of metrics to the tracking store
MetricRow = tuple[str, float, int, int]


@dataclass
class Trained:
    """What came of the stage: versions and failures by task, and all that went wrong on the way.

    ``stopped`` is the failure that the first experts had in common; ``workers`` counts the processes.
    """

    versions: dict[str, Version] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    incidents: list[Incident] = field(default_factory=list)
    stopped: Failure | None = None
    workers: int = 0
    results: list[ExpertResult] = field(default_factory=list)

    @property
    def usage(self) -> Usage:
        """What the work took."""
        shares = [
            result.metrics["tokens.real_share"] for result in self.results if result.metrics.get("tokens.real_share")
        ]
        loads = sum(int(result.metrics.get("base_loads", 0)) for result in self.results)
        return Usage(loads, self.workers, fmean(shares) if shares else None)


def train_experts(
    plan: Plan,
    missing: Sequence[str],
    registry: Registry,
    parent: str,
    runner: Runner,
    view: LiveView,
    together: int,
    found: Trained,
) -> None:
    """Train and register the ``missing`` experts, ``together`` of them in a job; fills ``found`` as it goes.

    An expert's failure leaves the others alone; where the first ones fail alike, the rest is not tried. Interrupted, it
    marks the open runs KILLED. Raises WorkFailedError where the store was away for too long; nothing finished is lost.
    """
    view.stage(STAGE, "expert", {task: expert.job.train.steps for task, expert in plan.experts.items()})
    for task in plan.experts.keys() - set(missing):
        view.state(task, "cached")
    with Recorder(is_away, plan.config.failures.tracking_minutes * 60) as recorder:
        desk = _Desk(plan, registry, parent, recorder, view, found)
        try:
            jobs = {task: plan.experts[task].job for task in missing}
            for task, job in list(jobs.items()):
                if result := finished_result(Path(job.folder), job.spec_hash):
                    desk.register(task, result)
                    del jobs[task]
            with closing(_running(runner, jobs, together)) as running:
                for news in running:
                    desk.take(news)
                    if found.stopped:
                        break
            desk.wait()
        finally:
            desk.close()


def units_of(jobs: dict[str, ExpertJob], together: int) -> list[Unit]:
    """A unit for each pack of jobs; its log lies with the first expert."""
    packs = packed(jobs, together)
    logs = [Path(next(iter(pack.values())).folder, LOG) for pack in packs]
    return [Unit(partial(run_together, run_experts), pack, log) for pack, log in zip(packs, logs, strict=True)]


def halved(job: ExpertJob) -> ExpertJob | None:
    """The same job with half as many rows in the model at once; None where that is one already."""
    rows = job.train.micro_batch or job.train.batch_size
    if rows == 1:
        return None
    return replace(job, train=job.train.model_copy(update={"micro_batch": math.ceil(rows / 2)}))


def _running(runner: Runner, jobs: dict[str, ExpertJob], together: int) -> Generator[News | None, None, None]:
    if jobs:
        yield from runner.run(units_of(jobs, together), halved)


class _Desk:
    """Takes the news of the experts and passes them on: to the registry, to the view, and into what was found."""

    def __init__(
        self, plan: Plan, registry: Registry, parent: str, recorder: Recorder, view: LiveView, found: Trained
    ) -> None:
        self.plan, self.registry, self.parent = plan, registry, parent
        self.recorder, self.view, self.found = recorder, view, found
        self.runs: dict[str, str] = {}  # only the recorder's thread writes here
        self.open: set[str] = set()
        self.ended: list[Failure | None] = []
        self.metrics: dict[str, list[MetricRow]] = {}
        self.logged, self.warned = time.monotonic(), False

    def take(self, news: News | None) -> None:
        """One piece of news; None is a moment to look after the record."""
        self._log_metrics()
        self._heard()
        if news is None:
            return
        if news.progress and news.key not in self.open:
            self.open.add(news.key)
            self.recorder.add(f"begin {news.key}", partial(self._run, news.key))
        for when, progress in news.progress:
            self.metrics.setdefault(news.key, []).extend(_rows(when, progress))
            self.view.progress(news.key, progress)
        if news.failure:
            self._failed(news)
        elif news.done:
            self.ended.append(None)
            self.register(news.key, news.result)

    def register(self, task: str, result: ExpertResult) -> None:
        """Have a finished expert registered."""
        self._log_metrics(task)
        self.open.discard(task)
        self.found.results.append(result)
        self.view.state(task, "registering")
        self.recorder.add(f"register {task}", partial(self._register, task, result))

    def wait(self) -> None:
        """Until all is recorded. Raises WorkFailedError where that was not to be."""
        self._log_metrics()
        while self.recorder.waiting:
            self._heard()
            time.sleep(0.05)
        self._heard()
        if self.recorder.given_up:
            raise stayed_away(self.plan.config.tracking_uri, self.recorder.patience, self.recorder.given_up)

    def close(self) -> None:
        """End the runs of what was not finished."""
        for task in self.open:
            self.view.state(task, "stopped")
            self.recorder.add(f"stop {task}", partial(self._end, task, "KILLED"))

    def _failed(self, news: News) -> None:
        failure = news.failure
        assert failure is not None
        self.found.incidents.append(Incident(time.time(), STAGE, news.key, news.attempt, failure, news.action))
        line = str(failure).splitlines()[0]
        if not news.done:
            self.view.state(news.key, "retrying", f"attempt {news.attempt + 1}, {news.action}: {line}")
            return
        self._fail(news.key, failure)
        self.ended.append(failure)
        self.found.stopped = self.found.stopped or hopeless(self.ended, self.plan.config.failures)

    def _fail(self, task: str, failure: Failure) -> None:
        self.found.failed[task] = failure
        self.open.discard(task)
        self.view.state(task, "failed", str(failure).splitlines()[0])
        self.recorder.add(f"fail {task}", partial(self._end, task, "FAILED", failure))

    def _heard(self) -> None:
        """What the recorder has done, and whether it can."""
        for done in self.recorder.done():
            self._recorded(done)
        if self.recorder.is_quiet and not self.warned:
            self.view.say("the MLflow store does not answer; work goes on, and what is found waits to be recorded")
        self.warned = self.recorder.is_quiet

    def _recorded(self, done: Done) -> None:
        deed, _, task = done.key.partition(" ")
        if isinstance(done.value, Version):
            self.found.versions[task] = done.value
            accuracy = done.value.metrics["test.accuracy"]
            self.view.state(task, "registered", f"v{done.value.version}", {"test.accuracy": accuracy})
        elif done.error and deed == "register":
            failure = failure_of(done.error)
            action = "kept on disk; registered by the next run"
            self.found.incidents.append(Incident(time.time(), STAGE, task, 1, failure, action))
            self.found.failed[task] = failure
            self.view.state(task, "failed", f"not registered: {str(failure).splitlines()[0]}")
        elif done.error and not is_away(done.error):
            self.view.say(f"the record of {task} is incomplete: {done.error}")

    def _log_metrics(self, task: str | None = None) -> None:
        """Send what waits, of one run or, when it is time, of all."""
        if task is None and time.monotonic() - self.logged < BETWEEN_LOGS:
            return
        for name in [task] if task else list(self.metrics):
            if rows := self.metrics.pop(name, []):
                self.recorder.add(f"measure {name}", partial(self._measure, name, rows))
        if task is None:
            self.logged = time.monotonic()

    # Below: deeds of the recorder's thread. Each may be done twice.

    def _run(self, task: str) -> str:
        if task not in self.runs:
            expert = self.plan.experts[task]
            self.runs[task] = self.registry.expert_run(
                self.plan.layout.library, self.parent, task, expert.job.spec_hash, run_params(expert)
            )
        return self.runs[task]

    def _measure(self, task: str, rows: list[MetricRow]) -> None:
        self.registry.log_metrics(self._run(task), rows)

    def _register(self, task: str, result: ExpertResult) -> Version:
        expert, folder, run = self.plan.experts[task], Path(result.folder), self._run(task)
        now = int(time.time() * 1000)
        last = [(key, value, 0, now) for key, value in result.metrics.items() if not key.startswith("validation.")]
        self.registry.log_metrics(run, last)
        accuracy = result.metrics["test.accuracy"]
        version = self.registry.register_expert(
            self.plan.layout.library,
            task,
            result.spec_hash,
            folder,
            run,
            version_tags(expert, result),
            metrics=result.metrics,
            description=f"{expert.job.adapter.method} adapter for {task}: test accuracy {accuracy:.3f}",
        )
        self._end(task, "FINISHED")
        return version

    def _end(self, task: str, status: Any, failure: Failure | None = None) -> None:
        run, log = self._run(task), Path(self.plan.experts[task].job.folder, LOG)
        if log.is_file():
            self.registry.log_file(run, log)
        if failure:
            self.registry.tag_run(run, {"error": str(failure)[:2000]})
        self.registry.finish_run(run, status)


def _rows(when: float, progress: Progress) -> list[MetricRow]:
    return [(name, value, progress.step, int(when * 1000)) for name, value in progress.metrics.items()]
