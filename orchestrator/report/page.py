"""The report of a ``ttmoe run`` as one HTML file that needs no server, no network and no other file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.report.charts import draw_bands, draw_confusion, draw_learning_curve, draw_quality
from orchestrator.report.content import Curve, RunReport
from orchestrator.report.figures import to_svg
from orchestrator.report.html_file import write_html
from orchestrator.report.search_charts import draw_trials
from workers.stopwatch import ACTIVITIES

_TEMPLATE = "page.html.j2"
_MAX_LEARNING_CURVES = 12
_MAX_CONFUSION_TASKS = 30
_MAX_INCIDENTS = 200
_MAX_TRACE = 4000  # characters


def write_report(path: Path, report: RunReport) -> None:
    """Write a report to an HTML file, and create its folder if it is missing.

    A previous file is replaced only when the new one is complete.
    """
    write_html(path, _TEMPLATE, {"report": report} | _charts(report) | _values(report))


def _charts(report: RunReport) -> dict[str, Any]:
    """Return the template's variables that are charts; empty text where there is no data."""
    many = len(report.curves) > _MAX_LEARNING_CURVES
    selected = _worst_first(report)[:_MAX_LEARNING_CURVES] if many else report.curves
    routing, search = report.routing, report.search
    draws_confusion = routing is not None and 0 < len(routing.tasks) <= _MAX_CONFUSION_TASKS
    confusion = draw_confusion(routing.confusion, routing.tasks) if routing and draws_confusion else None
    trials = draw_trials(search.trials, search.front, search.task) if search else None
    return {
        "learning_curves": [
            to_svg(draw_learning_curve(curve), f"Learning curve of {curve.task}") for curve in selected
        ],
        "bands": [
            to_svg(draw_bands(report.curves, metric), f"{metric}, all experts")
            for metric in ("loss", "accuracy")
            if many
        ],
        "quality": to_svg(draw_quality(report.experts), "Test accuracy against parameters"),
        "confusion": to_svg(confusion, "Confusion matrix of the router"),
        "trials": to_svg(trials, "Trials of the search"),
    }


def _values(report: RunReport) -> dict[str, Any]:
    """Return the template's other variables."""
    rows = report.experts
    return {
        "counts": Counter(row.state for row in rows).most_common(),
        "mean_accuracy": _mean(row.accuracy for row in rows),
        "mean_routed": _mean(row.routed for row in rows),
        "mean_share": _mean(row.share for row in rows),
        "routing_facts": _routing_facts(report.routing.metrics) if report.routing else [],
        "groups": report.routing.groups if report.routing else (),
        "routing_errors": report.routing.frequent_errors() if report.routing else [],
        "listed": report.incidents[:_MAX_INCIDENTS],
        "unlisted": max(0, len(report.incidents) - _MAX_INCIDENTS),
        "max_trace": _MAX_TRACE,
        "removed_heads": _REMOVED_HEADS,
        "activities": ACTIVITIES,
        "config": report.config,
        "failed": [row for row in rows if row.state == "failed"],
    }


_REMOVED_HEADS = {
    "duplicates": "repeated",
    "conflicts": "in conflict",
    "leaked": "leaked",
    "filtered": "filtered",
    "sampled": "beyond the sample",
}


def _routing_facts(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return name and sentence for each of the router's further metrics that was measured."""
    sentences = {
        "test.calibration_error": ("calibration error", "{:.3f} between the router's confidence and its accuracy"),
        "test.unknown": ("unknown", "{:.1%} of these rows would be answered with unknown; this test answers them too"),
        "test.known_accuracy": ("as predict answers", "{:.3f} mean accuracy with rows called unknown as errors"),
        "test.group_accuracy": (
            "by group",
            "{:.3f} mean accuracy if any expert of a group, or of its twins, may answer",
        ),
        "test.harmless_share": ("harmless", "{:.1%} of the misrouted rows got the right label from the wrong expert"),
        "stripped.routing_accuracy": (
            "without formatting",
            "{:.3f} routing accuracy in lower case, without punctuation, prefixes and separate fields",
        ),
    }
    return [(name, text.format(metrics[key])) for key, (name, text) in sentences.items() if key in metrics]


def _worst_first(report: RunReport) -> list[Curve]:
    """Return the curves of the experts with the lowest accuracy and of the slowest experts first, in turn."""
    rows = {row.task: row for row in report.experts}

    def accuracy(curve: Curve) -> float:
        row = rows.get(curve.task)
        return row.accuracy if row and row.accuracy is not None else -1.0

    def seconds(curve: Curve) -> float:
        row = rows.get(curve.task)
        return row.seconds or 0.0 if row else 0.0

    worst, slowest = sorted(report.curves, key=accuracy), sorted(report.curves, key=seconds, reverse=True)
    turns = [curve for pair in zip(worst, slowest, strict=True) for curve in pair]
    return list({curve.task: curve for curve in turns}.values())


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the finite values; None if there are none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
