"""The status of a library's newest run, read from MLflow."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.registry import Registry, RunRecord
from orchestrator.registry.expert_models import ROUTER
from orchestrator.registry.process_identity import presence
from ttmoe.errors import InputError

_STATES = {"FINISHED": "registered", "FAILED": "failed", "KILLED": "stopped"}


@dataclass(frozen=True)
class ExpertStatus:
    """The status of one expert that a run trains.

    Attributes:
        task: Its task.
        state: ``waiting``, ``training``, ``registered``, ``failed`` or ``stopped``.
        step: Training steps done.
        steps: Training steps in total, 0 if unknown.
        loss: Latest training loss; None if there is none or it is not finite.
        accuracy: Test accuracy, before it is known the latest validation accuracy; None as for the loss.
        error: Error message of a failed expert.
    """

    task: str
    state: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    accuracy: float | None = None
    error: str = ""


@dataclass(frozen=True)
class DriverStatus:
    """The command that works on a library.

    Attributes:
        command: The command.
        host: Name of its host.
        process: Its process id.
        since: When it began.
        seen: Its last sign of life.
        is_here: Whether it runs on this machine, outside other containers; otherwise it may have been lost.
    """

    command: str
    host: str
    process: int
    since: datetime
    seen: datetime
    is_here: bool


@dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    Attributes:
        library: Its library.
        run: Name of the MLflow run.
        status: Status of the MLflow run, such as ``RUNNING``.
        began: Start time.
        ended: End time; None while the run is open.
        version: Version of ttmoe.
        commit: Commit of the code, empty if unknown.
        experts: The experts that the run trains.
        cached: Number of experts that were registered before.
        router: ``under way``, ``registered``, ``failed`` or ``stopped``; empty before stage 2.
        search: Whether the run includes a search.
        driver: The holder of the library's lease; None if there is none or it is gone, or the run has ended.
        left: Estimated seconds until all experts are registered; None if unknown.
        run_id: Id of the MLflow run.
    """

    library: str
    run: str
    status: str
    began: datetime
    ended: datetime | None
    version: str
    commit: str
    experts: tuple[ExpertStatus, ...]
    cached: int
    router: str
    search: bool
    driver: DriverStatus | None
    left: float | None
    run_id: str

    @property
    def counts(self) -> dict[str, int]:
        """The number of experts in each state."""
        return dict(Counter(expert.state for expert in self.experts))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``ttmoe status --json``, not rounded; times are of type ``datetime``."""
        return asdict(self) | {"counts": self.counts}


def read_status(registry: Registry, library: str) -> RunStatus:
    """Read the status of a library's newest run. Nothing is locked or written.

    Args:
        registry: The registry.
        library: The library.

    Raises:
        InputError: If the library has no run.
    """
    run = registry.newest_run(library)
    if run is None:
        raise InputError("the library has no run", where=f"library {library}", fix="start one with `ttmoe run`")
    plan = registry.planned_work(run.run_id)
    children = {child.tags.get("task", child.name): child for child in registry.child_runs(library, run.run_id)}
    router = children.pop(ROUTER, None)
    trained = sorted({*plan.get("experts", []), *children})
    experts = tuple(_expert(task, children.get(task), run) for task in trained)
    running = run.status == "RUNNING"
    return RunStatus(
        library=library,
        run=run.name,
        status=run.status,
        began=run.began,
        ended=run.ended,
        version=run.tags.get("version", ""),
        commit=run.tags.get("mlflow.source.git.commit", ""),
        experts=experts,
        cached=len(set(plan.get("lock", {})) - set(trained)),
        router=_STATES.get(router.status, "under way") if router else "",
        search=bool(plan.get("search")),
        driver=_driver(registry, library) if running else None,
        left=estimate_seconds_left(experts, (datetime.now(UTC) - run.began).total_seconds()) if running else None,
        run_id=run.run_id,
    )


def estimate_seconds_left(experts: tuple[ExpertStatus, ...], elapsed: float) -> float | None:
    """Estimate the seconds until all experts have ended, from the mean share of their steps that is done.

    Args:
        experts: The experts of a run.
        elapsed: Seconds since the start of the run.

    Returns:
        The seconds; None without experts or before the first step.
    """
    if not experts:
        return None
    shares = [
        (expert.step / expert.steps if expert.steps else 0.0) if expert.state in ("training", "waiting") else 1.0
        for expert in experts
    ]
    done = sum(shares) / len(shares)
    return elapsed * (1 - done) / done if done else None


def _driver(registry: Registry, library: str) -> DriverStatus | None:
    claim = registry.lease_holder(library)
    if claim is None or (found := presence(claim.holder)) == "gone":
        return None
    since, seen = (datetime.fromtimestamp(each, UTC) for each in (claim.since, claim.seen))
    return DriverStatus(claim.command, claim.holder.host, claim.holder.process, since, seen, is_here=found == "running")


def _expert(task: str, child: RunRecord | None, parent: RunRecord) -> ExpertStatus:
    if child is None:
        return ExpertStatus(task, "waiting")
    state = _STATES.get(child.status)
    if state is None:
        # A run is created before its work starts, and a resumed one keeps its old metrics: only newer metrics count.
        state = "training" if child.last_metric_time and child.last_metric_time >= parent.began else "waiting"
    if parent.status != "RUNNING" and state in ("training", "waiting"):
        state = "stopped"
    return ExpertStatus(
        task,
        state,
        step=child.steps.get("train.loss", 0),
        steps=int(child.params.get("train.steps", 0)),
        loss=_finite(child.metrics.get("train.loss")),
        accuracy=_finite(child.metrics.get("test.accuracy", child.metrics.get("validation.accuracy"))),
        error=child.tags.get("error", "") if state == "failed" else "",
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
