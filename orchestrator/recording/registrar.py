"""Dispatch of stage 1's job events to the registry, the live view and the stage's result."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

from orchestrator.pool.failure_policy import common_failure
from orchestrator.pool.work_units import JobEvent
from orchestrator.progress.live_view import LiveView
from orchestrator.recording.expert_operations import ExpertOperations
from orchestrator.recording.recorder import OperationResult, Recorder
from orchestrator.registry import Version, is_unavailable, unavailable_error
from orchestrator.registry.runs import MetricRow
from orchestrator.report.content import ResourceUsage
from orchestrator.report.incidents import Incident
from orchestrator.report.time_use import ExpertTime, TimeUse
from workers.expert_result import ExpertResult
from workers.failure import Failure, to_failure
from workers.progress import Progress

STAGE = "Stage 1: experts"
LOG_INTERVAL = 5.0  # seconds between two writes of metrics to the store


@dataclass
class Stage1Result:
    """Result of stage 1, filled while the stage runs.

    Attributes:
        versions: Registered versions by task.
        failed: Final failures by task.
        incidents: All failures, including those of attempts that were retried.
        stopped: The failure that the first experts had in common, after which the others were not tried; else None.
        workers: Number of worker processes that were started.
        results: Results of the experts that were trained or found trained.
        found: Tasks of the experts that were found trained; their seconds belong to an earlier run.
        busy_seconds: Seconds in which workers had work, summed over workers.
        waiting_seconds: Seconds in which workers had none.
        recording_seconds: Seconds of the recorder's operations, by task.
        logs: Log of each task's work unit; experts that are trained together share one.
    """

    versions: dict[str, Version] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    incidents: list[Incident] = field(default_factory=list)
    stopped: Failure | None = None
    workers: int = 0
    results: list[ExpertResult] = field(default_factory=list)
    found: set[str] = field(default_factory=set)
    busy_seconds: float = 0.0
    waiting_seconds: float = 0.0
    recording_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    logs: dict[str, Path] = field(default_factory=dict)

    @property
    def usage(self) -> ResourceUsage:
        """Resources that the stage used."""
        shares = [
            result.metrics["tokens.real_share"] for result in self.results if result.metrics.get("tokens.real_share")
        ]
        loads = sum(int(result.metrics.get("base_loads", 0)) for result in self.results)
        recording = self.recording_seconds
        trained = [each for each in self.results if each.task not in self.found]
        experts = tuple(ExpertTime.of(each.task, each.metrics, recording[each.task]) for each in trained)
        time = TimeUse(experts, self.busy_seconds, self.waiting_seconds, sum(recording.values()))
        return ResourceUsage(loads, self.workers, fmean(shares) if shares else None, time)


class Registrar:
    """Receiver of job events, which queues registry operations and updates the live view and the stage's result.

    Attributes:
        operations: The registry operations, which ``recorder`` executes in its thread.
        recorder: Executor of the operations.
        view: The live view.
        stage_result: The result to fill.
    """

    def __init__(
        self, operations: ExpertOperations, recorder: Recorder, view: LiveView, stage_result: Stage1Result
    ) -> None:
        self.operations, self.recorder, self.view, self.stage_result = operations, recorder, view, stage_result
        self._config = operations.plan.config
        self._begun: set[str] = set()  # tasks that have not ended
        self._outcomes: list[Failure | None] = []  # of the ended jobs in order; None for a success
        self._metrics: dict[str, list[MetricRow]] = {}  # by task, not queued yet
        self._last_log_time, self._outage_reported = time.monotonic(), False

    def handle_event(self, event: JobEvent | None) -> None:
        """Process one job event; None only processes what the recorder has finished."""
        self._log_metrics()
        self._process_results()
        if event is None:
            return
        if event.progress:
            self._begun.add(event.key)
        for timestamp, progress in event.progress:
            self._metrics.setdefault(event.key, []).extend(_metric_rows(timestamp, progress))
            self.view.update(event.key, progress)
        if event.failure:
            self._handle_failure(event, event.failure)
        elif event.retry:  # of a job that had failed
            self.stage_result.failed.pop(event.key, None)
            self.view.set_state(event.key, "retrying", event.action)
        elif event.done:
            self._outcomes.append(None)
            self.register(event.key, event.result)

    def register(self, task: str, result: ExpertResult) -> None:
        """Queue the registration of a trained expert."""
        self._begun.discard(task)
        self.stage_result.results.append(result)
        self.view.set_state(task, "registering")
        self.recorder.add(
            f"register {task}", partial(self.operations.register, task, result, self._metrics.pop(task, []))
        )

    def wait_until_recorded(self) -> None:
        """Wait until all queued operations are done. Raise WorkFailedError if the store stayed unavailable."""
        while self.recorder.pending:
            self._process_results()
            time.sleep(0.05)
        self._process_results()
        if error := self.recorder.final_error:
            raise unavailable_error(self._config.store.uri, self.recorder.patience, error)

    def stop_open_runs(self) -> None:
        """Queue the end of the runs of all experts that have begun and not ended, with status KILLED."""
        for task in self._begun:
            self.view.set_state(task, "stopped")
            rows = self._metrics.pop(task, [])
            self.recorder.add(f"stop {task}", partial(self.operations.end_run, task, "KILLED", rows=rows))

    def _handle_failure(self, event: JobEvent, failure: Failure) -> None:
        task, message = event.key, str(failure).splitlines()[0]
        self._add_incident(task, failure, event.attempt, event.action)
        if not event.done:
            self.view.set_state(task, "retrying", f"attempt {event.attempt + 1}, {event.action}: {message}")
            return
        self.stage_result.failed[task] = failure
        self._begun.discard(task)
        self.view.set_state(task, "failed", message)
        rows = self._metrics.pop(task, [])
        self.recorder.add(f"fail {task}", partial(self.operations.end_run, task, "FAILED", failure, rows))
        self._outcomes.append(failure)
        self.stage_result.stopped = self.stage_result.stopped or common_failure(self._outcomes, self._config.failures)

    def _process_results(self) -> None:
        """Process the recorder's results, and report once if the store does not respond."""
        for result in self.recorder.pop_results():
            self._process_result(result)
        unresponsive = self.recorder.is_unresponsive
        if unresponsive and not self._outage_reported:
            self.view.print("the MLflow store does not respond; work continues, and is recorded when it responds again")
        self._outage_reported = unresponsive

    def _process_result(self, result: OperationResult) -> None:
        operation, _, task = result.key.partition(" ")
        self.stage_result.recording_seconds[task] += result.seconds
        if isinstance(result.value, Version):
            self.stage_result.versions[task] = result.value
            accuracy = result.value.metrics["test.accuracy"]
            self.view.set_state(task, "registered", f"v{result.value.version}", {"test.accuracy": accuracy})
        elif result.error and operation == "register":
            failure = to_failure(result.error)
            self._add_incident(task, failure, 1, "kept on disk; registered by the next run")
            self.stage_result.failed[task] = failure
            self.view.set_state(task, "failed", f"not registered: {str(failure).splitlines()[0]}")
        elif result.error and not is_unavailable(result.error):
            # Without a task, it was the list of runs that was read for all of them.
            what = f"the MLflow run of {task} is incomplete" if task else "runs are searched for one by one"
            self.view.print(f"{what}: {result.error}")

    def _add_incident(self, task: str, failure: Failure, attempt: int, action: str) -> None:
        self.stage_result.incidents.append(Incident(time.time(), STAGE, task, attempt, failure, action))

    def _log_metrics(self) -> None:
        """Queue the collected metrics of all tasks every LOG_INTERVAL seconds; the first of a task open its run.

        The metrics of an expert that ends earlier are logged with its result, in one request.
        """
        if time.monotonic() - self._last_log_time < LOG_INTERVAL:
            return
        for task in list(self._metrics):
            self.recorder.add(f"log {task}", partial(self.operations.log_metrics, task, self._metrics.pop(task)))
        self._last_log_time = time.monotonic()


def _metric_rows(timestamp: float, progress: Progress) -> list[MetricRow]:
    return [(name, value, progress.step, int(timestamp * 1000)) for name, value in progress.metrics.items()]
