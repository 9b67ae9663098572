"""The report of a run: collected from the record, written as one HTML page.

``write_report(path, collect(plan, registry, run_id, incidents, usage))`` is its whole surface.
"""

from __future__ import annotations

from orchestrator.report.collect import collect_report
from orchestrator.report.content import Curve, ExpertRow, ResourceUsage, RoutingReport, RunReport, SearchReport
from orchestrator.report.page import write_report

__all__ = [
    "Curve",
    "ExpertRow",
    "ResourceUsage",
    "RoutingReport",
    "RunReport",
    "SearchReport",
    "collect_report",
    "write_report",
]
