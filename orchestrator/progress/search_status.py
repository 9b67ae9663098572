"""The status of a library's newest search, read from MLflow."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from orchestrator.progress.driver_status import DriverStatus
from orchestrator.registry import Registry, RunRecord


@dataclass(frozen=True)
class TrialStatus:
    """The status of one trial.

    Attributes:
        task: Its task.
        number: Its number within the search of the task.
        origin: Why it was made; a ``reference`` is an adapter to compare with.
        state: ``waiting`` for its next rung, ``running``, ``finished``, ``stopped`` at a rung, ``failed``, or
            ``interrupted`` with its search.
        point: Its choices.
        parameters: Adapter parameters.
        seed: Number of its random seed; 0 is that of the task.
        step: Training steps at its last rung.
        accuracy: Validation accuracy there; None before the first rung.
        loss: Validation loss there; None as for the accuracy.
        error: Error message of a failed trial.
    """

    task: str
    number: int
    origin: str
    state: str
    point: dict[str, Any]
    parameters: int
    seed: int = 0
    step: int = 0
    accuracy: float | None = None
    loss: float | None = None
    error: str = ""


@dataclass(frozen=True)
class SearchStatus:
    """The status of a search.

    Attributes:
        run: Name of the MLflow run.
        status: Status of the MLflow run, such as ``RUNNING``.
        began: Start time.
        ended: End time; None while it is open.
        tasks: The tasks that it searches on.
        steps: Training steps of a complete trial, 0 if unknown.
        trials: Its trials so far, by task and number.
        driver: The command that works on the library; None if there is none, or the search has ended.
        run_id: Id of the MLflow run.
    """

    run: str
    status: str
    began: datetime
    ended: datetime | None
    tasks: tuple[str, ...]
    steps: int
    trials: tuple[TrialStatus, ...]
    driver: DriverStatus | None
    run_id: str

    @property
    def counts(self) -> dict[str, int]:
        """The number of trials in each state."""
        return dict(Counter(trial.state for trial in self.trials))

    @property
    def best(self) -> dict[str, TrialStatus]:
        """The most accurate complete trial of each task, before there is one the most accurate trial."""
        found: dict[str, TrialStatus] = {}
        for trial in sorted(self.trials, key=_quality):
            if trial.accuracy is not None and trial.state != "failed" and trial.origin != "reference":
                found[trial.task] = trial
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``ttmoe status --json`` for a search."""
        best = {task: trial.number for task, trial in self.best.items()}
        return asdict(self) | {"counts": self.counts, "best": best}


def read_search_status(
    registry: Registry, library: str, driver: DriverStatus | None, since: datetime | None
) -> SearchStatus | None:
    """Read the status of a library's newest search. Nothing is locked or written.

    Args:
        registry: The registry.
        library: The library.
        driver: The command that works on it. Without one, a search that is open was interrupted.
        since: Time before which a search may not have ended; None for any search.

    Returns:
        The status; None if there is no such search.
    """
    run = registry.newest_search(library)
    if run is None or (run.status != "RUNNING" and since and (run.ended or run.began) < since):
        return None
    plan = registry.planned_work(run.run_id)
    driver = driver if run.status == "RUNNING" else None
    trials = [_trial(each, is_open=driver is not None) for each in registry.trial_runs(library, run.run_id)]
    tasks = plan.get("tasks") or [task for task in run.tags.get("task", "").split(",") if task]
    return SearchStatus(
        run=run.name,
        status=run.status,
        began=run.began,
        ended=run.ended,
        tasks=tuple(tasks),
        steps=int(plan.get("steps", 0)),
        trials=tuple(sorted(filter(None, trials), key=lambda trial: (trial.task, trial.number))),
        driver=driver,
        run_id=run.run_id,
    )


def _quality(trial: TrialStatus) -> tuple[bool, float, int]:
    return trial.state == "finished", trial.accuracy or 0.0, -trial.parameters


def _trial(run: RunRecord, *, is_open: bool) -> TrialStatus | None:
    """Return the status of a trial from the tags of its run; None for one of an older version."""
    try:
        rungs = json.loads(run.tags["rungs"])
        step, accuracy, loss = rungs[-1][:3] if rungs else (0, None, None)
        state = run.tags["state"]
        return TrialStatus(
            task=run.tags["task"],
            number=int(run.tags["number"]),
            origin=run.tags["origin"],
            state="interrupted" if state in ("running", "waiting") and not is_open else state,
            point=json.loads(run.tags["point"]),
            parameters=int(json.loads(run.tags["described"])["parameters"]),
            seed=int(run.tags["seed"]),
            step=int(step),
            accuracy=_if_finite(accuracy),
            loss=_if_finite(loss),
            error=run.tags.get("error", "") if state == "failed" else "",  # else of an earlier attempt
        )
    except (KeyError, TypeError, ValueError):
        return None


def _if_finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
