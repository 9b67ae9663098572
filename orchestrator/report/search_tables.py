"""The tables of a finished search: the Pareto front, and the points that were repeated with several seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

Record = Mapping[str, Any]
"""What a search found for one task, an element of the artifact ``trials.json``."""


def read_search_records(path: Path) -> list[Record]:
    """Return the record of each task of a search from its artifact ``trials.json``."""
    content = json.loads(path.read_text())
    records: list[Record] = content.get("tasks", [content])  # version 0.1.0 searched on one task
    return records


def read_shared_point(path: Path) -> Mapping[str, Any] | None:
    """Return the point that suits all tasks of a search from its artifact ``trials.json``; None if it has none."""
    shared: Mapping[str, Any] | None = json.loads(path.read_text()).get("shared")
    return shared


def shared_line(shared: Mapping[str, Any]) -> str:
    """Return a line on the point that suits all tasks."""
    point = ", ".join(f"{name} {value}" for name, value in shared["point"].items())
    places = ", ".join(f"{task} {accuracy:.3f}" for task, accuracy in shared["accuracies"].items())
    return f"One for all tasks: {point} (mean position {shared['mean_position']:.2f}; {places})"


def front_table(record: Record) -> Table:
    """Return the table of the Pareto front of one task, with means over seeds; the recommended point is marked."""
    count = len(record["trials"])
    trials = f"{count} trial" + ("s" if count != 1 else "")
    table = _table(f"Search on {record['task']}: {trials}, the Pareto front")
    for head in ("rank", "factors", "parameters", "of LoRA-16", "validation accuracy"):
        table.add_column(head, justify="right")
    table.add_column("")
    winner = record.get("winner") or {}
    marks = {number: "recommended" for number in winner.get("trials", ())}
    points = list(record["front"])
    if winner and not any(each.get("number") in marks for each in points):  # a smaller point has its accuracy
        points.append(winner | {"number": winner["trials"][0]})
        marks[winner["trials"][0]] = "recommended: lower loss"
    for each in sorted(points, key=lambda each: each["parameters"]):
        mark = marks.get(each.get("number"), "")
        table.add_row(*_point_cells(record, each), f"{each['accuracy']:.3f}", mark)
    table.add_section()
    for each in record.get("references", ()):
        share = each["parameters"] / record["lora16_parameters"]
        table.add_row("", each["name"], f"{each['parameters']:,.0f}", f"{share:.1%}", f"{each['accuracy']:.3f}", "")
    return table


def finalists_table(record: Record) -> Table:
    """Return the table of the points of one task that were repeated, with mean and spread over the seeds."""
    table = _table(f"Finalists on {record['task']}, over several seeds")
    for head in ("rank", "factors", "parameters", "of LoRA-16", "seeds", "validation accuracy"):
        table.add_column(head, justify="right")
    table.add_column("")
    for each in record["finalists"]:
        accuracy = f"{each['accuracy']:.3f} ± {each['spread']:.3f}"
        marked = each["point"] == record["winner"]["point"]
        table.add_row(*_point_cells(record, each), str(each["seeds"]), accuracy, "recommended" if marked else "")
    return table


def _table(title: str) -> Table:
    return Table(box=SIMPLE_HEAD, title=title, title_justify="left")


def _point_cells(record: Record, point: Mapping[str, Any]) -> tuple[str, ...]:
    share = point["parameters"] / record["lora16_parameters"]
    return str(point["rank"]), str(point["factors"]), f"{point['parameters']:,.0f}", f"{share:.1%}"
