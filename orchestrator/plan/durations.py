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

    Returns:
        Seconds by task: 0 if the expert exists or only has to be registered, None if no version on this base has times.
    """
    times = read_times(plan, state)
    seconds: dict[str, float | None] = {}
    for task, expert in plan.experts.items():
        current, of_task = state.experts[task], times[task]
        if current.state == "cached" or current.trained:
            seconds[task] = 0.0
        elif of_task is None:
            seconds[task] = None
        else:
            overhead, per_step = of_task
            seconds[task] = overhead + per_step * max(0, expert.job.train.steps - current.step)
    return seconds


def read_times(plan: Plan, state: LibraryState) -> dict[str, tuple[float, float] | None]:
    """Return the times of earlier trainings: those of the task's newest version on the same base.

    Returns:
        By task, seconds outside of training and seconds per step: means over all versions on this base if the task has
        none, None if there are none at all.
    """
    versions = [v for v in state.versions if v.tags.get("base_digest") == plan.base.digest and _has_times(v)]
    newest = {version.task: version for version in sorted(versions, key=lambda version: version.version)}
    mean_times = _mean_times(versions)
    return {task: _mean_times([newest[task]]) if task in newest else mean_times for task in plan.experts}


def _mean_times(versions: Sequence[Version]) -> tuple[float, float] | None:
    """Return mean seconds outside of training, and mean seconds per step; None without versions."""
    if not versions:
        return None
    overhead = fmean(max(0.0, v.metrics["seconds.job"] - v.metrics["seconds.training"]) for v in versions)
    return overhead, fmean(v.metrics["seconds.training"] / v.metrics["steps"] for v in versions)


def _has_times(version: Version) -> bool:
    metrics = version.metrics
    return metrics.get("steps", 0) > 0 and {"seconds.training", "seconds.job"} <= metrics.keys()
