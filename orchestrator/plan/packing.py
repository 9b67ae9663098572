"""Which experts share a job."""

from __future__ import annotations

from collections.abc import Mapping

from workers.expert_job import ExpertJob


def pack_jobs(jobs: Mapping[str, ExpertJob], together: int) -> list[dict[str, ExpertJob]]:
    """The jobs in packs of at most ``together`` with the same trunk, the longest first, so that none starts late."""
    by_depth: dict[int, list[tuple[str, ExpertJob]]] = {}
    for task, job in sorted(jobs.items(), key=lambda each: -each[1].train.steps * each[1].train.batch_size):
        by_depth.setdefault(job.adapter.first_layer, []).append((task, job))
    return [dict(line[i : i + together]) for line in by_depth.values() for i in range(0, len(line), together)]
