"""What the routed model's test came to: on the mixture of all tasks' test rows, no task named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from workers.routing.routed_accuracy import RoutedAccuracy
from workers.routing.router_job import RouterResult


def summarize_routing(
    result: RouterResult,
    tests: Mapping[str, RoutedAccuracy],
    alone: Mapping[str, float],
    depths: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The evaluation as it is kept beside the router; ``alone`` are the experts' own test accuracies.

    The routed and the alone accuracy are means over tasks. The harmless share is, of the rows sent to a wrong expert,
    that of those which were given the right label's name all the same.
    """
    rows = sum(test.rows for test in tests.values())
    right = sum(test.routed_right for test in tests.values())
    metrics = result.metrics | {
        "test.routing_accuracy": right / rows,
        "test.routed_accuracy": fmean(test.answered_right / test.rows for test in tests.values()),
        "test.alone_accuracy": fmean(alone[task] for task in tests),
        "test.harmless_share": sum(test.harmless for test in tests.values()) / max(1, rows - right),
    }
    return {
        "tasks": {task: asdict(test) | {"alone": alone[task]} for task, test in tests.items()},
        "routing_accuracy": right / rows,
        "confusion": result.confusion,
        "confusion_tasks": list(result.tasks),
        "depths": list(depths),
        "metrics": metrics,
    }
