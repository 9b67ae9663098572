"""The value of a run: its experts, the router and the report, complete or as far as the run came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.recording.registrar import Stage1Result
from orchestrator.registry import Version
from orchestrator.registry.artifacts import ALONE_ACCURACY


@dataclass(frozen=True)
class ExpertOutcome:
    """One expert after a run.

    Attributes:
        state: ``registered`` by this run, ``cached`` from an earlier one, ``failed``, or ``missing``: not trained.
        name: Name of its registered model; empty without a version.
        version: Number of its version; None without one.
        accuracy: Test accuracy; None without a version.
        error: Why it failed; else empty.
    """

    state: Literal["registered", "cached", "failed", "missing"]
    name: str = ""
    version: int | None = None
    accuracy: float | None = None
    error: str = ""


@dataclass(frozen=True)
class RouterOutcome:
    """The router after a run.

    Attributes:
        name: Name of its registered model.
        version: Number of its version.
        metrics: Its figures, such as ``test.routing_accuracy`` and ``test.routed_accuracy``.
    """

    name: str
    version: int
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, version: Version) -> RouterOutcome:
        """Return the router of a registered version."""
        return cls(version.name, version.version, dict(version.metrics))


@dataclass(frozen=True)
class RunOutcome:
    """What a run has made.

    Attributes:
        library: The library.
        run_id: Its MLflow run; None if there was nothing to do, or the run ended before its work began.
        experts: The experts by task.
        router: The router; None if there is none.
        report: Path of the report, or its URI where the artifacts are on a server; None if none was written.
    """

    library: str
    run_id: str | None
    experts: Mapping[str, ExpertOutcome]
    router: RouterOutcome | None
    report: str | None

    @property
    def failed(self) -> dict[str, str]:
        """The error of each expert that failed, by task."""
        return {task: expert.error for task, expert in self.experts.items() if expert.state == "failed"}

    @property
    def counts(self) -> dict[str, int]:
        """The number of experts in each state."""
        return dict(Counter(expert.state for expert in self.experts.values()))


@dataclass
class RunInProgress:
    """What a run has made so far, filled while it goes on.

    Attributes:
        library: The library.
        tasks: All tasks.
        cached: Versions that were registered before, by task.
        named: Tasks whose experts the config names, which are tested with the router.
        stage_result: The result of stage 1.
        router: The router.
        run_id: The MLflow run.
        report: Path or URI of the report.
    """

    library: str
    tasks: tuple[str, ...]
    cached: Mapping[str, Version] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    stage_result: Stage1Result = field(default_factory=Stage1Result)
    router: Version | None = None
    run_id: str | None = None
    report: str | None = None

    def outcome(self) -> RunOutcome:
        """Return what the run has made so far as a value."""
        router = RouterOutcome.of(self.router) if self.router else None
        experts = {task: self._expert(task) for task in self.tasks}
        return RunOutcome(self.library, self.run_id, experts, router, self.report)

    def _expert(self, task: str) -> ExpertOutcome:
        made = self.stage_result
        if task in made.failed:
            return ExpertOutcome("failed", error=str(made.failed[task]))
        version = made.versions.get(task) or self.cached.get(task)
        if version is None:
            return ExpertOutcome("missing")
        state: Literal["registered", "cached"] = "registered" if task in made.versions else "cached"
        metrics, name = version.metrics, "test.accuracy"
        if task in self.named:
            metrics, name = self.router.metrics if self.router else {}, f"{ALONE_ACCURACY}.{task}"
        return ExpertOutcome(state, version.name, version.version, metrics.get(name))
