"""Registry operations for the runs and versions of stage 1, executed in the recorder's thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.plan.planning import Plan
from orchestrator.pool.work_units import LOG_FILE
from orchestrator.recording.expert_tags import run_params, version_tags
from orchestrator.registry import Registry, Version
from orchestrator.registry.runs import FinalStatus, MetricRow
from workers.expert_result import ExpertResult
from workers.failure import Failure

_LONGEST_ERROR = 2000  # characters of the tag `error`


class ExpertOperations:
    """Registry operations of the experts of one ``ttmoe run``. Each is safe to repeat.

    Attributes:
        plan: The plan of the run.
        registry: An open registry without retries: the recorder retries.
        parent: Run id of the ``ttmoe run``.
    """

    def __init__(self, plan: Plan, registry: Registry, parent: str) -> None:
        self.plan, self.registry, self.parent = plan, registry, parent
        self._run_ids: dict[str, str] = {}

    def start_run(self, task: str) -> str:
        """Return the run id of a task's expert. Start or continue the run at the first call."""
        if task not in self._run_ids:
            expert = self.plan.experts[task]
            self._run_ids[task] = self.registry.expert_run(
                self.plan.folders.library, self.parent, task, expert.job.spec_hash, run_params(expert)
            )
        return self._run_ids[task]

    def log_metrics(self, task: str, rows: Sequence[MetricRow]) -> None:
        """Log metric values of a task."""
        self.registry.log_metrics(self.start_run(task), rows)

    def register(self, task: str, result: ExpertResult) -> Version:
        """Log the final metrics, register the expert as a version and finish its run."""
        expert, now = self.plan.experts[task], int(time.time() * 1000)
        self.log_metrics(
            task,
            [(name, value, 0, now) for name, value in result.metrics.items() if not name.startswith("validation.")],
        )
        accuracy = result.metrics["test.accuracy"]
        version = self.registry.register_expert(
            self.plan.folders.library,
            task,
            result.spec_hash,
            Path(result.folder),
            self.start_run(task),
            version_tags(expert, result),
            metrics=result.metrics,
            description=f"{expert.job.adapter.method} adapter for {task}: test accuracy {accuracy:.3f}",
        )
        self.end_run(task, "FINISHED")
        return version

    def end_run(self, task: str, status: FinalStatus, failure: Failure | None = None) -> None:
        """Upload the task's log, set the tag ``error`` after a failure, and end the run."""
        run_id, log = self.start_run(task), Path(self.plan.experts[task].job.folder, LOG_FILE)
        if log.is_file():
            self.registry.log_file(run_id, log)
        if failure:
            self.registry.tag_run(run_id, {"error": str(failure)[:_LONGEST_ERROR]})
        self.registry.finish_run(run_id, status)
