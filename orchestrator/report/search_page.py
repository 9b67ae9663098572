"""The report of a search as one HTML file that needs no server, no network and no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.report.figures import to_svg
from orchestrator.report.html_file import write_html
from orchestrator.report.parallel_axes import draw_choices
from orchestrator.report.search_charts import draw_finalists, draw_hypervolume, draw_importances, draw_trials
from orchestrator.report.search_content import (
    MAX_ERRORS,
    all_trials,
    best_first,
    choice_names,
    config_text,
    count_states,
    error_rows,
    point_text,
    reason_text,
    rung_rows,
    thin,
)
from orchestrator.report.search_tables import Record

_TEMPLATE = "search.html.j2"
MAX_TRIALS = 1000  # rows of tables and points of charts of all tasks together, which keeps the page below 2 MB
_LEAST_TRIALS = 40  # of one task
_MAX_LINES = 300  # of parallel coordinates
MAX_WHOLE_TASKS = 12  # of more, the others have only their recommendation and their front


@dataclass(frozen=True)
class SearchHeader:
    """What the report says of a whole search.

    Attributes:
        library: Name of the library.
        base: Name of the base.
        version: Version of ttmoe.
        began: When the search began.
        seconds: Time since then.
        config: Settings of the search as YAML.
    """

    library: str
    base: str
    version: str
    began: datetime
    seconds: float
    config: str


def write_search_report(
    path: Path, header: SearchHeader, records: Sequence[Record], shared: Mapping[str, Any] | None = None
) -> None:
    """Write the report of a search to an HTML file, and create its folder if it is missing.

    Args:
        path: The file.
        header: What it says of the whole search.
        records: The record of each task.
        shared: The point that suits all tasks; None for a single task, or if there is none.
    """
    count = max(_LEAST_TRIALS, MAX_TRIALS // max(1, len(records)))
    trials = [trial for record in records for trial in all_trials(record)]
    values = {
        "search": header,
        "title": records[0]["task"] if len(records) == 1 else f"{len(records)} tasks",
        "sections": [_section(record, count, whole=i < MAX_WHOLE_TASKS) for i, record in enumerate(records)],
        "states": count_states(trials),
        "shared": shared,
        "shared_point": point_text(shared["point"], choice_names(records[0])) if shared else "",
        "steps": sum(trial.get("steps") or 0 for trial in trials),
        "training_seconds": sum(trial.get("seconds") or 0 for trial in trials),
        "max_whole": MAX_WHOLE_TASKS,
        "max_errors": MAX_ERRORS,
    }
    write_html(path, _TEMPLATE, values)


def _section(record: Record, count: int, *, whole: bool) -> dict[str, Any]:
    """Return the variables of one task's section."""
    names, winner = choice_names(record), record.get("winner")
    trials = all_trials(record)
    ordered = best_first(trials)
    return {
        "record": record,
        "task": record["task"],
        "whole": whole,
        "winner": winner,
        "point": point_text(winner["point"], names) if winner else "",
        "reason": reason_text(record) if winner else "",
        "config": config_text(record) if winner else "",
        "rungs": rung_rows(trials),
        "errors": error_rows(trials),
        "listed": [(trial, point_text(trial.get("point", {}), names)) for trial in ordered[:count]],
        "unlisted": max(0, len(ordered) - count),
        "undrawn": max(0, len(record["trials"]) - count),
        **_charts(record, names, count, whole=whole),
    }


def _charts(record: Record, names: Sequence[str], count: int, *, whole: bool) -> dict[str, Any]:
    task, winner, measured = record["task"], record.get("winner"), record["trials"]
    front, references = record["front"], record.get("references") or ()
    drawn = thin(measured, count, front)
    charts = {"trials": to_svg(draw_trials(drawn, front, task, references, winner), f"Trials of {task}")}
    if not whole:
        return charts
    lines = thin(best_first(measured), min(count, _MAX_LINES), front)
    volumes = record.get("hypervolumes") or ()
    importances: Mapping[str, float] | None = record.get("importances")
    return charts | {
        "finalists": to_svg(draw_finalists(record["finalists"], winner), f"Finalists of {task}"),
        "importances": to_svg(draw_importances(importances) if importances else None, f"Importances for {task}"),
        "choices": to_svg(draw_choices(lines, names, winner) if lines else None, f"Choices of {task}"),
        "lines": len(lines) if len(lines) < len(measured) else 0,
        "hypervolume": to_svg(draw_hypervolume(volumes, "accuracy × decades"), f"Hypervolume for {task}"),
    }
