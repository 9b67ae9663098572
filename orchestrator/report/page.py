"""The report as one HTML file that needs nothing else: no server, no network, no other file."""

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

from orchestrator.progress.stage_progress import first_line, format_duration
from orchestrator.report import charts
from orchestrator.report.content import Curve, RunReport

TEMPLATE = "page.html.j2"
GRID = 12  # learning curves that are shown one by one
MOST_INCIDENTS = 200  # that are listed
MOST_TRACE = 4000  # characters of a traceback


def write_report(path: Path, report: RunReport) -> None:
    """Write the page, whole or not at all. All text in it is escaped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    part.write_text(page(report), encoding="utf-8")
    os.replace(part, path)


def page(report: RunReport) -> str:
    """The page as text."""
    # Autoescape stands for everything, whatever the template is called.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": format_duration, "first_line": first_line, "clock": _clock, "number": _number, "score": _score,
    }  # fmt: skip
    return environment.get_template(TEMPLATE).render(report=report, **_shown(report))


def _shown(report: RunReport) -> dict[str, Any]:
    """What the template needs beside the report itself."""
    rows = report.experts
    worst = _worst_first(report)
    return {
        "counts": Counter(row.state for row in rows).most_common(),
        "mean_accuracy": _mean(row.accuracy for row in rows),
        "mean_routed": _mean(row.routed for row in rows),
        "mean_share": _mean(row.share for row in rows),
        "grid": [charts.learning(curve) for curve in worst[:GRID]],
        "bands": [charts.band(report.curves, which) for which in ("loss", "accuracy")] if len(worst) > GRID else [],
        "quality": charts.quality(rows),
        "trials": charts.trials(report.search.trials, report.search.front) if report.search else "",
        "confusion": charts.confusion(report.routing) if report.routing else "",
        "routing_facts": _routing_facts(report.routing.metrics) if report.routing else [],
        "misrouted": charts.misrouted(report.routing) if report.routing else [],
        "listed": report.incidents[:MOST_INCIDENTS],
        "unlisted": max(0, len(report.incidents) - MOST_INCIDENTS),
        "most_trace": MOST_TRACE,
        # An address in the config may carry a password, and a report is made to be passed on.
        "config": re.sub(r"//[^/@\s]*@", "//***@", report.config),
        "failed": [row for row in rows if row.state == "failed"],
    }


def _routing_facts(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """What else was measured of the router, as words and sentences; what was not is left out."""
    said = {
        "test.calibration_error": ("calibration error", "{:.3f} from the router's confidence to how often it is right"),
        "test.unknown": ("unknown", "{:.1%} of these rows are called so; in this test they are answered too"),
        "test.harmless_share": ("harmless", "{:.1%} of the rows sent to a wrong expert got the right label from it"),
        "stripped.routing_accuracy": (
            "without formatting",
            "{:.3f} routing accuracy in lower case, with no punctuation, prefixes or separate fields",
        ),
    }
    return [(name, text.format(metrics[key])) for key, (name, text) in said.items() if key in metrics]


def _worst_first(report: RunReport) -> list[Curve]:
    """The curves as they came where all are shown; else those of the worst and the slowest experts first, in turn."""
    if len(report.curves) <= GRID:
        return list(report.curves)
    rows = {row.task: row for row in report.experts}

    def score(curve: Curve) -> float:
        row = rows.get(curve.task)
        return row.accuracy if row and row.accuracy is not None else -1.0

    def seconds(curve: Curve) -> float:
        row = rows.get(curve.task)
        return -(row.seconds or 0.0) if row else 0.0

    worst, slowest = sorted(report.curves, key=score), sorted(report.curves, key=seconds)
    turns = [curve for pair in zip(worst, slowest, strict=True) for curve in pair]
    return list({curve.task: curve for curve in turns}.values())


def _mean(values: Iterable[float | None]) -> float | None:
    """Over what is known; None where nothing is."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _clock(when: datetime | float) -> str:
    moment = when if isinstance(when, datetime) else datetime.fromtimestamp(when, UTC)
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _number(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None else ""


def _score(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and math.isfinite(value) else ""
