"""The evaluation of the routed model on the mixed test rows of all tasks."""

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
    """Return the content of ``evaluation.json``, the file beside a router.

    Its metrics ``test.routed_accuracy`` and ``test.alone_accuracy`` are means over tasks. ``test.harmless_share`` is
    the share of the misrouted rows for which the wrong expert answered with the name of the right label.

    Args:
        result: Result of the router's job, with the metrics measured there.
        tests: Test of the routed model by task.
        alone: Test accuracy by task of the experts alone.
        depths: Comparison of routers that read fewer layers.
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
