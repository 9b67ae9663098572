"""How many training rows a router takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.run.router_rows import train_on_growing_rows
from ttmoe.features import FeatureSpec
from workers.data.prepared import PreparedTask
from workers.routing.router_job import ROUTING_ACCURACY, RouterJob
from workers.training.settings import RouterSettings


def taken(accuracies: list[float], rows: int = 9000, **settings: object) -> tuple[list[int], list[int], int, float]:
    """The rows whose features were computed, those trained on, those of the job and the accuracy that it ends with."""
    counts = {"train": {"yes": rows - 10, "no": 10}, "validation": {"yes": 5}, "test": {"yes": 5}}
    data = {"large": PreparedTask("large", "text", ("yes", "no"), "f", counts, 0.5, 0, {}, Path("/nowhere"))}
    job = RouterJob(None, FeatureSpec(), data, {}, {}, RouterSettings(**settings), 0, "", "")  # type: ignore[arg-type]
    computed, trained, given = list[int](), list[int](), iter(accuracies)

    def train(job: RouterJob) -> SimpleNamespace:
        trained.append(job.settings.most_rows)
        return SimpleNamespace(metrics={ROUTING_ACCURACY: next(given)})

    last, result = train_on_growing_rows(job, computed.append, train)  # type: ignore[arg-type]
    return computed, trained, last.settings.most_rows, result.metrics[ROUTING_ACCURACY]


@pytest.mark.parametrize(
    ("accuracies", "rows"),
    [
        ([0.95, 0.97, 0.98, 0.99], [500, 1000, 2000, 5000]),  # it rises to the end
        ([0.95, 0.97, 0.971], [500, 1000, 2000]),  # by too little: the last router stays
        ([0.95, 0.951], [500, 1000]),
    ],
)
def test_rows_are_doubled_while_the_accuracy_rises(accuracies: list[float], rows: list[int]) -> None:
    assert taken(accuracies) == (rows, rows, rows[-1], accuracies[-1])


def test_a_router_that_more_rows_made_worse_is_trained_as_before() -> None:
    assert taken([0.95, 0.97, 0.96, 0.97]) == ([500, 1000, 2000], [500, 1000, 2000, 1000], 1000, 0.97)


def test_small_tasks_and_given_rows_are_taken_at_once() -> None:
    assert taken([0.9], rows=400) == ([500], [500], 500, 0.9)
    assert taken([0.9], rows_per_task=70) == ([70], [70], 70, 0.9)
