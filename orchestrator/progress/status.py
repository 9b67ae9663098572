"""The status of a library's newest run and search, read from MLflow."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.progress.driver_status import DriverStatus, read_driver
from orchestrator.progress.search_status import SearchStatus, read_search_status
from orchestrator.registry import Registry, RunRecord
from orchestrator.registry.expert_models import ROUTER
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
        searches: The newest search, if it is open or has ended since the run began. In a library that has a search and
            no run, the other attributes are those of the search.
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
    searches: tuple[SearchStatus, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """The number of experts in each state."""
        return dict(Counter(expert.state for expert in self.experts))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``ttmoe status --json``, not rounded; times are of type ``datetime``."""
        searches = [search.to_dict() for search in self.searches]
        return asdict(self) | {"counts": self.counts, "searches": searches}


def read_status(registry: Registry, library: str) -> RunStatus:
    """Read the status of a library's newest run and search. Nothing is locked or written.

    Args:
        registry: The registry.
        library: The library.

    Raises:
        InputError: If the library has neither.
    """
    run, driver = registry.newest_run(library), read_driver(registry, library)
    search = read_search_status(registry, library, driver, run.began if run else None)
    if run:
        return replace(_run_status(registry, library, run, driver), searches=(search,) if search else ())
    if search:
        return _of_search(library, search)
    raise InputError("the library has no run", where=f"library {library}", fix="start one with `ttmoe run`")


def _run_status(registry: Registry, library: str, run: RunRecord, driver: DriverStatus | None) -> RunStatus:
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
        driver=driver if running else None,
        left=estimate_seconds_left(experts, (datetime.now(UTC) - run.began).total_seconds()) if running else None,
        run_id=run.run_id,
    )


def _of_search(library: str, search: SearchStatus) -> RunStatus:
    return RunStatus(
        library, search.run, search.status, search.began, search.ended, version="", commit="", experts=(), cached=0,
        router="", search=True, driver=search.driver, left=None, run_id=search.run_id, searches=(search,),
    )  # fmt: skip


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
