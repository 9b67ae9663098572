"""The report of a ``ttmoe run`` as one HTML file that needs no server, no network and no other file."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from orchestrator.plan.quantities import format_duration
from orchestrator.progress.stage_progress import first_line
from orchestrator.report.charts import draw_bands, draw_confusion, draw_learning_curve, draw_quality, draw_trials
from orchestrator.report.content import Curve, RunReport
from orchestrator.report.figures import to_svg
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
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    part.write_text(_render(report), encoding="utf-8")
    os.replace(part, path)


def _render(report: RunReport) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # jinja2 would not infer it from a name that ends in .j2
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": format_duration,
        "first_line": first_line,
        "clock": _format_time,
        "number": _format_number,
        "score": _format_score,
        "seconds": _format_seconds,
    }
    return environment.get_template(_TEMPLATE).render(report=report, **_charts(report), **_values(report))


def _charts(report: RunReport) -> dict[str, Any]:
    """Return the template's variables that are charts; empty text where there is no data."""
    many = len(report.curves) > _MAX_LEARNING_CURVES
    selected = _worst_first(report)[:_MAX_LEARNING_CURVES] if many else report.curves
    routing, search = report.routing, report.search
    draws_confusion = routing is not None and 0 < len(routing.tasks) <= _MAX_CONFUSION_TASKS
    confusion = draw_confusion(routing.confusion, routing.tasks) if routing and draws_confusion else None
    trials = draw_trials(search.trials, search.front, search.task) if search else None
    return {
        "learning_curves": [_svg(draw_learning_curve(curve), f"Learning curve of {curve.task}") for curve in selected],
        "bands": [
            _svg(draw_bands(report.curves, metric), f"{metric}, all experts") for metric in ("loss", "accuracy") if many
        ],
        "quality": _svg(draw_quality(report.experts), "Test accuracy against parameters"),
        "confusion": _svg(confusion, "Confusion matrix of the router"),
        "trials": _svg(trials, "Trials of the search"),
    }


def _svg(figure: Figure | None, label: str) -> Markup:
    return to_svg(figure, label) if figure else Markup("")


def _values(report: RunReport) -> dict[str, Any]:
    """Return the template's other variables."""
    rows = report.experts
    return {
        "counts": Counter(row.state for row in rows).most_common(),
        "mean_accuracy": _mean(row.accuracy for row in rows),
        "mean_routed": _mean(row.routed for row in rows),
        "mean_share": _mean(row.share for row in rows),
        "routing_facts": _routing_facts(report.routing.metrics) if report.routing else [],
        "routing_errors": report.routing.frequent_errors() if report.routing else [],
        "listed": report.incidents[:_MAX_INCIDENTS],
        "unlisted": max(0, len(report.incidents) - _MAX_INCIDENTS),
        "max_trace": _MAX_TRACE,
        "activities": ACTIVITIES,
        # A URL in the config may contain a password, and users share reports.
        "config": re.sub(r"//[^/@\s]*@", "//***@", report.config),
        "failed": [row for row in rows if row.state == "failed"],
    }


def _routing_facts(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return name and sentence for each of the router's further metrics that was measured."""
    sentences = {
        "test.calibration_error": ("calibration error", "{:.3f} between the router's confidence and its accuracy"),
        "test.unknown": ("unknown", "{:.1%} of these rows would be answered with unknown; this test answers them too"),
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


def _format_time(when: datetime | float) -> str:
    moment = when if isinstance(when, datetime) else datetime.fromtimestamp(when, UTC)
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _format_number(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None else ""


def _format_seconds(value: float | None) -> str:
    """Return seconds with three digits, at least two of them after the point below 10."""
    if value is None:
        return ""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _format_score(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and math.isfinite(value) else ""
