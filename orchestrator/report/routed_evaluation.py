"""The evaluation of the routed model on the mixed test rows of all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from orchestrator.report.twins import join_groups
from workers.routing.routed_accuracy import RoutedAccuracy, calibration_error
from workers.routing.router_job import RouterResult


def summarize_routing(
    result: RouterResult,
    tests: Mapping[str, RoutedAccuracy],
    alone: Mapping[str, float | None],
    depths: Sequence[Mapping[str, Any]],
    groups: Sequence[Sequence[str]] = (),
    twins: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Return the content of ``evaluation.json``, the file beside a router.

    Of its metrics, these are means over tasks: ``test.routed_accuracy`` counts answers of a row's own expert,
    ``test.known_accuracy`` those that ``predict`` gives, which calls some rows ``unknown`` and lets the experts of a
    group answer together, ``test.group_accuracy`` right answers of any expert in the task's group or among its twins,
    and ``test.alone_accuracy`` answers of experts that are told the task. ``test.harmless_share`` is the share of the
    misrouted rows for which the wrong expert answered with the name of the right label. Tasks whose rows have no labels
    are left out of all five; without any other task, there are none of these metrics.

    Args:
        result: Result of the router's job, with the metrics measured there.
        tests: Test of the routed model by task.
        alone: Test accuracy by task of the experts alone; None for rows without labels.
        depths: Comparison of routers that read fewer layers.
        groups: The tasks that answer together (``router.groups``).
        twins: The tasks that might, see ``orchestrator.report.twins``; one of them may be in a group.
    """
    tests = {task: tests[task] for task in result.tasks}  # units end in any order
    rows = sum(test.rows for test in tests.values())
    right = sum(test.routed_right for test in tests.values())
    together = join_groups(result.tasks, [*groups, *twins])
    group_of = {task: group for group in together for task in group}
    in_group = {task: test.right_in(group_of.get(task, ())) for task, test in tests.items()}
    labelled = [test for test in tests.values() if test.labelled]
    misrouted = sum(test.rows - test.routed_right for test in labelled)
    metrics = result.metrics | {
        "test.routing_accuracy": right / rows,
        "test.calibration_error": calibration_error(tests.values()),
        "test.unknown": sum(test.unknown for test in tests.values()) / rows,
    }
    if labelled:
        metrics |= {
            "test.routed_accuracy": fmean(test.answered_right / test.rows for test in labelled),
            "test.known_accuracy": fmean(test.known_right / test.rows for test in labelled),
            "test.alone_accuracy": fmean(value for test in labelled if (value := alone[test.task]) is not None),
            "test.harmless_share": sum(sum(test.harmless.values()) for test in labelled) / max(1, misrouted),
        }
    if labelled and group_of:
        metrics["test.group_accuracy"] = fmean(in_group[test.task] / test.rows for test in labelled)
    return {
        "tasks": {
            task: asdict(test) | {"alone": alone[task], "right_in_group": in_group[task]}
            for task, test in tests.items()
        },
        "routing_accuracy": right / rows,
        "confusion": [[test.routed.get(task, 0) for task in result.tasks] for test in tests.values()],
        "confusion_tasks": list(result.tasks),
        "depths": list(depths),
        "twins": [list(group) for group in twins],
        "groups": together,
        "metrics": metrics,
    }
