"""The report of a run: collect its content from the registry, write it as one HTML page."""

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
