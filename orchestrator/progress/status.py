"""``ttmoe status``: how far the newest run of a library has come, read from the record alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.registry import Registry, RunRecord
from orchestrator.registry.driver_lock import local_driver
from orchestrator.registry.expert_models import ROUTER
from ttmoe.errors import InputError

_STATES = {"FINISHED": "registered", "FAILED": "failed", "KILLED": "stopped"}


@dataclass(frozen=True)
class ExpertStatus:
    """One expert that the run had to make, with the last that was measured of it; a loss that is no number is None."""

    task: str
    state: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    accuracy: float | None = None
    error: str = ""


@dataclass(frozen=True)
class RunStatus:
    """A run as its record tells it. ``driver`` is the process on this machine that works on it, if one does; ``left``
    is in seconds, until the experts are there.
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
    driver: int | None
    left: float | None
    run_id: str

    @property
    def counts(self) -> dict[str, int]:
        """How many experts are in each state."""
        return dict(Counter(expert.state for expert in self.experts))


def read_status(registry: Registry, library: str, home: Path) -> RunStatus:
    """The status of the newest run, in three queries; ``home`` is where a driver on this machine holds its lock."""
    run = registry.newest_run(library)
    if run is None:
        raise InputError("no run of it is in the record", where=f"library {library}", fix="start one with `ttmoe run`")
    planned = registry.planned_work(run.run_id)
    children = {child.tags.get("task", child.name): child for child in registry.child_runs(library, run.run_id)}
    router = children.pop(ROUTER, None)
    todo = sorted({*planned.get("experts", []), *children})
    experts = tuple(_expert(task, children.get(task), run) for task in todo)
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
        cached=len(set(planned.get("lock", {})) - set(todo)),
        router=_STATES.get(router.status, "under way") if router else "",
        search=bool(planned.get("search")),
        driver=local_driver(home) if running else None,
        left=estimate_seconds_left(experts, (datetime.now(UTC) - run.began).total_seconds()) if running else None,
        run_id=run.run_id,
    )


def estimate_seconds_left(experts: tuple[ExpertStatus, ...], passed: float) -> float | None:
    """Until the last expert ends, if it goes on as since the beginning; None before anything shows."""
    if not experts:
        return None
    shares = [
        (expert.step / expert.steps if expert.steps else 0.0) if expert.state in ("training", "waiting") else 1.0
        for expert in experts
    ]
    done = sum(shares) / len(shares)
    return passed * (1 - done) / done if done else None


def _expert(task: str, child: RunRecord | None, parent: RunRecord) -> ExpertStatus:
    if child is None:
        return ExpertStatus(task, "waiting")
    state = _STATES.get(child.status)
    if state is None:
        # Runs are made before their work begins, and an interrupted one keeps its old metrics: what counts is news.
        state = "training" if child.heard and child.heard >= parent.began else "waiting"
    if parent.status != "RUNNING" and state in ("training", "waiting"):
        state = "stopped"
    return ExpertStatus(
        task,
        state,
        step=child.steps.get("train.loss", 0),
        steps=int(child.params.get("train.steps", 0)),
        loss=_number(child.metrics.get("train.loss")),
        accuracy=_number(child.metrics.get("test.accuracy", child.metrics.get("validation.accuracy"))),
        error=child.tags.get("error", "") if state == "failed" else "",
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
