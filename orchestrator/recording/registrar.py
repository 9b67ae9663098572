"""Pass the events of stage 1 on: to the registry, to the live view and into the stage's result."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator.plan.planning import Plan
from orchestrator.pool.failure_policy import common_failure
from orchestrator.pool.work_units import LOG_FILE, JobEvent
from orchestrator.progress.live_view import LiveView
from orchestrator.recording.expert_tags import run_params, version_tags
from orchestrator.recording.recorder import OperationResult, Recorder
from orchestrator.registry import Registry, Version, is_unavailable, unavailable_error
from orchestrator.registry.runs import MetricRow
from orchestrator.report.content import ResourceUsage
from orchestrator.report.incidents import Incident
from workers.expert_result import ExpertResult
from workers.failure import Failure, to_failure
from workers.progress import Progress

STAGE = "Stage 1: experts"
LOG_INTERVAL = 5.0  # seconds between writes of metrics to the tracking store


@dataclass
class Stage1Result:
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
    def usage(self) -> ResourceUsage:
        """What the work took."""
        shares = [
            result.metrics["tokens.real_share"] for result in self.results if result.metrics.get("tokens.real_share")
        ]
        loads = sum(int(result.metrics.get("base_loads", 0)) for result in self.results)
        return ResourceUsage(loads, self.workers, fmean(shares) if shares else None)


class Registrar:
    """Takes the news of the experts and passes them on: to the registry, to the view, and into what was found."""

    def __init__(
        self, plan: Plan, registry: Registry, parent: str, recorder: Recorder, view: LiveView, found: Stage1Result
    ) -> None:
        self.plan, self.registry, self.parent = plan, registry, parent
        self.recorder, self.view, self.found = recorder, view, found
        self.runs: dict[str, str] = {}  # only the recorder's thread writes here
        self.open: set[str] = set()
        self.ended: list[Failure | None] = []
        self.metrics: dict[str, list[MetricRow]] = {}
        self.logged, self.warned = time.monotonic(), False

    def take(self, news: JobEvent | None) -> None:
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
            raise unavailable_error(self.plan.config.tracking_uri, self.recorder.patience, self.recorder.given_up)

    def close(self) -> None:
        """End the runs of what was not finished."""
        for task in self.open:
            self.view.state(task, "stopped")
            self.recorder.add(f"stop {task}", partial(self._end, task, "KILLED"))

    def _failed(self, news: JobEvent) -> None:
        failure = news.failure
        assert failure is not None
        self.found.incidents.append(Incident(time.time(), STAGE, news.key, news.attempt, failure, news.action))
        line = str(failure).splitlines()[0]
        if not news.done:
            self.view.state(news.key, "retrying", f"attempt {news.attempt + 1}, {news.action}: {line}")
            return
        self._fail(news.key, failure)
        self.ended.append(failure)
        self.found.stopped = self.found.stopped or common_failure(self.ended, self.plan.config.failures)

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

    def _recorded(self, done: OperationResult) -> None:
        deed, _, task = done.key.partition(" ")
        if isinstance(done.value, Version):
            self.found.versions[task] = done.value
            accuracy = done.value.metrics["test.accuracy"]
            self.view.state(task, "registered", f"v{done.value.version}", {"test.accuracy": accuracy})
        elif done.error and deed == "register":
            failure = to_failure(done.error)
            action = "kept on disk; registered by the next run"
            self.found.incidents.append(Incident(time.time(), STAGE, task, 1, failure, action))
            self.found.failed[task] = failure
            self.view.state(task, "failed", f"not registered: {str(failure).splitlines()[0]}")
        elif done.error and not is_unavailable(done.error):
            self.view.say(f"the record of {task} is incomplete: {done.error}")

    def _log_metrics(self, task: str | None = None) -> None:
        """Send what waits, of one run or, when it is time, of all."""
        if task is None and time.monotonic() - self.logged < LOG_INTERVAL:
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
                self.plan.folders.library, self.parent, task, expert.job.spec_hash, run_params(expert)
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
            self.plan.folders.library,
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
        run, log = self._run(task), Path(self.plan.experts[task].job.folder, LOG_FILE)
        if log.is_file():
            self.registry.log_file(run, log)
        if failure:
            self.registry.tag_run(run, {"error": str(failure)[:2000]})
        self.registry.finish_run(run, status)


def _rows(when: float, progress: Progress) -> list[MetricRow]:
    return [(name, value, progress.step, int(when * 1000)) for name, value in progress.metrics.items()]
