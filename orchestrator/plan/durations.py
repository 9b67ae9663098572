"""Forecast of training times from the times of registered versions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from orchestrator.plan.library_state import LibraryState
from orchestrator.plan.planning import Plan

if TYPE_CHECKING:
    from orchestrator.registry import Version


def estimate_expert_seconds(plan: Plan, state: LibraryState) -> dict[str, float | None]:
    """Estimate how long the training of each expert will take.

    The estimate uses the seconds per step and per evaluated row of the task's newest version on the same base, or the
    mean over all versions on this base if the task has none.

    Returns:
        Seconds by task: 0 if the expert exists or only has to be registered, None if no version on this base has times.
    """
    versions = [v for v in state.versions if v.tags.get("base_digest") == plan.base.digest and _has_times(v)]
    newest = {version.task: version for version in sorted(versions, key=lambda version: version.version)}
    mean_times = _mean_times(versions)
    seconds: dict[str, float | None] = {}
    for task, expert in plan.experts.items():
        current, times = state.experts[task], _mean_times([newest[task]]) if task in newest else mean_times
        if current.state == "cached" or current.trained:
            seconds[task] = 0.0
        elif times is None:
            seconds[task] = None
        else:
            overhead, per_step, per_row = times
            train, validation = expert.job.train, sum(expert.job.data.counts["validation"].values())
            rows = max(0, train.evaluated_rows(validation, train.steps, current.step))
            seconds[task] = overhead + per_step * max(0, train.steps - current.step) + per_row * rows
    return seconds


def _mean_times(versions: Sequence[Version]) -> tuple[float, float, float] | None:
    """Return mean seconds outside of training, per step, and per evaluated row; None without versions.

    Where a version does not have the time of its steps alone, its evaluations are part of its steps.
    """
    if not versions:
        return None
    times = []
    for version in versions:
        metrics = version.metrics
        training, rows = metrics["seconds.training"], metrics.get("rows.evaluated", 0)
        steps = min(training, metrics.get("seconds.steps", training)) if rows else training
        times.append(
            (max(0.0, metrics["seconds.job"] - training), steps / metrics["steps"], (training - steps) / max(1, rows))
        )
    overhead, per_step, per_row = map(fmean, zip(*times, strict=True))
    return overhead, per_step, per_row


def _has_times(version: Version) -> bool:
    metrics = version.metrics
    return metrics.get("steps", 0) > 0 and {"seconds.training", "seconds.job"} <= metrics.keys()
