"""Pack experts into jobs."""

from __future__ import annotations

from collections.abc import Mapping

from workers.expert_job import ExpertJob


def pack_jobs(jobs: Mapping[str, ExpertJob], experts_per_job: int) -> list[dict[str, ExpertJob]]:
    """Group expert jobs that train together.

    All experts of a group have the same trunk. The longest trainings come first, so that none of them starts last.

    Args:
        jobs: Expert jobs by task.
        experts_per_job: Maximum size of a group.
    """
    by_depth: dict[int, list[tuple[str, ExpertJob]]] = {}
    for task, job in sorted(jobs.items(), key=lambda item: -item[1].train.steps * item[1].train.batch_size):
        by_depth.setdefault(job.adapter.first_layer, []).append((task, job))
    return [
        dict(group[start : start + experts_per_job])
        for group in by_depth.values()
        for start in range(0, len(group), experts_per_job)
    ]
