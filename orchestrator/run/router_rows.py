"""The training rows that a router takes: more while they help, with their features computed again where damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from ttmoe.errors import WorkFailedError
from workers.cache.feature_store import SPLITS, features_complete
from workers.routing.router_job import ROUTING_ACCURACY, RouterJob, RouterResult

R = TypeVar("R")
LEAST_GAIN = 0.002  # of validation accuracy, for which a router takes more rows


def train_on_growing_rows(
    job: RouterJob, compute: Callable[[int], None], train: Callable[[RouterJob], RouterResult]
) -> tuple[RouterJob, RouterResult]:
    """Train the router on the rows of ``router.rows_per_task``: if it is ``auto``, on more while the accuracy rises.

    Returns:
        The job of the router, with the number of its rows, and the result.
    """
    available = max(sum(data.counts["train"].values()) for data in job.data.values())
    found: list[tuple[float, RouterJob, RouterResult]] = []
    for rows in job.settings.portions(available):
        job = replace(job, settings=job.settings.model_copy(update={"rows_per_task": rows}))
        compute(rows)
        result = on_sound_features(job, compute, partial(train, job))
        found.append((result.metrics[ROUTING_ACCURACY], job, result))
        gain = found[-1][0] - (found[-2][0] if len(found) > 1 else 0.0)
        if gain < 0:  # its files were overwritten: train the better one again, from the features that are there
            _, job, _ = found[-2]
            return job, on_sound_features(job, compute, partial(train, job))
        if gain < LEAST_GAIN:
            break
    return found[-1][1:]


def on_sound_features(job: RouterJob, compute: Callable[[int], None], work: Callable[[], R]) -> R:
    """Do work that reads features. It stops at the first damaged file, which it removes: compute it again, repeat."""
    rows = job.settings.most_rows
    for _ in range(len(job.data) * len(SPLITS)):
        try:
            return work()
        except WorkFailedError:
            if all(features_complete(Path(job.feature_folders[task]), data, rows) for task, data in job.data.items()):
                raise
        compute(rows)
    return work()
