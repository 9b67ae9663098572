"""How long experts may take, by the versions that are registered: nothing else is known of the future."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from orchestrator.plan.library_state import LibraryState
from orchestrator.plan.planning import Plan

if TYPE_CHECKING:
    from orchestrator.registry import Version


def estimate_expert_seconds(plan: Plan, standing: LibraryState) -> dict[str, float | None]:
    """By task the seconds that its expert still takes: 0 where it is there, None where no version on this base tells.

    A task's own newest version tells best; else the mean over all. By the step, so a training that stops early takes
    less.
    """
    past = [v for v in standing.versions if v.tags.get("base_digest") == plan.base.digest and _tells(v)]
    own = {version.task: version for version in sorted(past, key=lambda version: version.version)}
    mean = _pace(past)
    found: dict[str, float | None] = {}
    for task, expert in plan.experts.items():
        here, pace = standing.experts[task], _pace([own[task]]) if task in own else mean
        if here.state == "cached" or here.trained:
            found[task] = 0.0
        else:
            found[task] = pace and pace[0] + pace[1] * max(0, expert.job.train.steps - here.step)
    return found


def _pace(past: Sequence[Version]) -> tuple[float, float] | None:
    """Mean seconds around the steps, and of a step."""
    if not past:
        return None
    around = fmean(max(0.0, v.metrics["seconds.job"] - v.metrics["seconds.training"]) for v in past)
    return around, fmean(v.metrics["seconds.training"] / v.metrics["steps"] for v in past)


def _tells(version: Version) -> bool:
    metrics = version.metrics
    return metrics.get("steps", 0) > 0 and {"seconds.training", "seconds.job"} <= metrics.keys()
