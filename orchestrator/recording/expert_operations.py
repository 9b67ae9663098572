"""Registry operations for the runs and versions of stage 1, executed in the recorder's thread."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from orchestrator.plan.planning import Plan
from orchestrator.pool.work_units import LOG_FILE
from orchestrator.recording.descriptions import describe_expert, describe_expert_model
from orchestrator.recording.expert_tags import run_params, training_data, version_metrics, version_tags
from orchestrator.registry import Registry, Version
from orchestrator.registry.runs import FinalStatus, MetricRow
from workers.expert_result import ExpertResult
from workers.failure import Failure

_LONGEST_ERROR = 2000  # characters of the tag `error`


class ExpertOperations:
    """Registry operations of the experts of one ``ttmoe run``. Each is safe to repeat.

    What the store has of the missing experts is read once, in ``read_state``. The first attempt to create a run or a
    version relies on it; a later one searches first, because the attempt before may have taken effect.

    Attributes:
        plan: The plan of the run.
        registry: An open registry without retries: the recorder retries.
        parent: Run id of the ``ttmoe run``.
        logs: Log of each task's work unit; of other tasks it is expected in the expert's folder.
    """

    def __init__(self, plan: Plan, registry: Registry, parent: str, logs: Mapping[str, Path] | None = None) -> None:
        self.plan, self.registry, self.parent = plan, registry, parent
        self.logs = {} if logs is None else logs  # stage 1 fills it later
        self._run_ids: dict[str, str] = {}
        self._without_run: set[str] = set()  # tasks
        self._without_version: set[str] = set()

    def read_state(self, missing: Collection[str], gone: Collection[str] = ()) -> None:
        """Read which of the missing experts have a run, with a number of requests that grows with pages of runs.

        Args:
            missing: Tasks whose experts are missing. The caller holds the library's lock, so none is added.
            gone: Those of them that have a version without files, and so a finished run.
        """
        begun = self.registry.unfinished_specs(self.plan.folders.library)
        self._without_version = set(missing).difference(gone)
        specs = {task: (task, self.plan.experts[task].job.spec_hash) for task in self._without_version}
        self._without_run = {task for task, spec in specs.items() if spec not in begun}

    def log_metrics(self, task: str, rows: Sequence[MetricRow]) -> str:
        """Log metric values of a task, and return its run id. The first call starts or continues the run."""
        if task in self._run_ids:
            self.registry.log_metrics(self._run_ids[task], rows)
            return self._run_ids[task]
        expert, is_new = self.plan.experts[task], task in self._without_run
        self._without_run.discard(task)
        self._run_ids[task] = self.registry.expert_run(
            self.plan.folders.library,
            self.parent,
            task,
            expert.job.spec_hash,
            run_params(expert),
            is_new=is_new,
            metrics=rows,
            data=training_data(expert, self.plan.config.tasks[task]),
        )
        return self._run_ids[task]

    def register(self, task: str, result: ExpertResult, rows: Sequence[MetricRow] = ()) -> Version:
        """Log the last and the final metrics, register the expert as a version and finish its run.

        Args:
            task: Name of the task.
            result: The result of its expert.
            rows: Metric values that are not logged yet.
        """
        expert, now = self.plan.experts[task], int(time.time() * 1000)
        final = [(name, value, 0, now) for name, value in result.metrics.items() if not name.startswith("validation.")]
        run_id, is_new = self.log_metrics(task, [*rows, *final]), task in self._without_version
        self._without_version.discard(task)
        version = self.registry.register_expert(
            self.plan.folders.library,
            task,
            result.spec_hash,
            Path(result.folder),
            run_id,
            version_tags(expert, result),
            metrics=version_metrics(result.metrics),
            description=describe_expert(expert, result),
            about=describe_expert_model(self.plan.folders.library, expert),
            is_new=is_new,
        )
        self.end_run(task, "FINISHED")
        return version

    def end_run(
        self, task: str, status: FinalStatus, failure: Failure | None = None, rows: Sequence[MetricRow] = ()
    ) -> None:
        """Log the last metrics, upload the task's log, set the tag ``error`` after a failure, and end the run.

        The log of experts that were trained together is in the folder of one, and uploaded for those that failed too.
        """
        run_id, log = self.log_metrics(task, rows), Path(self.plan.experts[task].job.folder, LOG_FILE)
        if failure:
            log = self.logs.get(task, log)
        if log.is_file():
            self.registry.log_file(run_id, log)
        if failure:
            self.registry.tag_run(run_id, {"error": str(failure)[:_LONGEST_ERROR]})
        self.registry.finish_run(run_id, status)
