"""The charts of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import Any

from markupsafe import Markup

from orchestrator.report.content import Curve, ExpertRow, Points, RoutingReport
from orchestrator.report.svg import Chart, Scale, short

MOST_CELLS = 30  # tasks that a picture of the routing holds
_STRETCHES = 25  # of a training, for the band over many


def learning(curve: Curve) -> Markup:
    """One expert: training loss (left axis; raw and smoothed) and validation accuracy (right axis) by step."""
    chart = Chart(300, 165, f"learning curve of {curve.task}")
    loss, accuracy = _finite(curve.loss), _finite(curve.accuracy)
    steps = [step for step, _ in loss + accuracy] or [1.0]
    x = Scale(min(0.0, *steps), max(1.0, *steps), 34, 264)
    smooth = smoothed(loss)
    # One wild batch must not flatten the rest: the axis ends where the smoothed loss does.
    y_loss = Scale(0, max((value for _, value in smooth), default=1.0) * 1.05 or 1.0, 138, 26)
    y_accuracy = Scale(0, 1, 138, 26)
    chart.text(34, 13, curve.task if len(curve.task) <= 34 else curve.task[:33] + "…", "title")
    chart.y_axis(y_loss, 34, 264, "loss")
    chart.y_axis(y_accuracy, 34, 264, "accuracy", far=True)
    chart.x_axis(x, 138)
    chart.line([(x(step), y_loss(min(value, y_loss.high))) for step, value in loss], "loss raw")
    chart.line([(x(step), y_loss(value)) for step, value in smooth], "loss")
    chart.line([(x(step), y_accuracy(value)) for step, value in accuracy], "accuracy")
    for step, value in accuracy if len(accuracy) <= 12 else accuracy[-1:]:
        chart.dot(x(step), y_accuracy(value), "accuracy", f"step {step:g}: {value:.3f}", 2.5)
    return chart.markup()


def band(curves: Sequence[Curve], which: str) -> Markup:
    """Median, middle half and middle nine tenths over all ``curves``, by the share of the training that is done."""
    lines = [_resampled(smoothed(points) if which == "loss" else points) for points in _of(curves, which)]
    chart = Chart(480, 230, f"{which} over {len(lines)} trainings")
    if not lines:
        return Markup("")
    columns = [sorted(column) for column in zip(*lines, strict=True)]
    levels = [[_quantile(column, share) for column in columns] for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
    x = Scale(0, 100, 44, 462)
    y = Scale(0, 1 if which == "accuracy" else max(levels[-1]) * 1.05 or 1.0, 188, 24)
    what = "training loss" if which == "loss" else "validation accuracy"
    chart.text(44, 14, f"{what}, {len(lines)} experts", "title")
    chart.y_axis(y, 44, 462)
    chart.x_axis(x, 188, "% of the training", 5)
    spots = [[(x(100 * i / (_STRETCHES - 1)), y(value)) for i, value in enumerate(level)] for level in levels]
    chart.area(spots[4], spots[0], f"{which} wide")
    chart.area(spots[3], spots[1], f"{which} narrow")
    chart.line(spots[2], which)
    return chart.markup()


def quality(rows: Sequence[ExpertRow]) -> Markup:
    """Parameters against test accuracy, a point for each expert; a hollow one is what it is behind the router."""
    points = [(row, float(row.parameters), row.accuracy) for row in rows if row.parameters and _is_number(row.accuracy)]
    if not points:
        return Markup("")
    chart, x, y = _plane([size for _, size, _ in points], [float(value or 0) for _, _, value in points])
    few = len(points) <= 60
    for row, size, value in points:
        title = f"{row.task}: accuracy {value:.3f}, {size:,.0f} parameters"
        chart.dot(x(size), y(float(value or 0)), "mark" if few else "mark many", title, 4.5 if few else 3)
    if len(points) <= 12:
        _names(chart, [(x(size), y(float(value or 0)), row.task) for row, size, value in points])
    return chart.markup()


def trials(tried: Sequence[Mapping[str, Any]], front: Sequence[Mapping[str, Any]]) -> Markup:
    """A search: every trial, and the line through those that no other beats."""
    tried = [trial for trial in tried if trial.get("parameters") and _is_number(trial.get("accuracy"))]
    if not tried:
        return Markup("")
    chart, x, y = _plane([trial["parameters"] for trial in tried], [trial["accuracy"] for trial in tried], "validation")
    best = sorted(front, key=lambda trial: trial["parameters"])
    chart.line([(x(trial["parameters"]), y(trial["accuracy"])) for trial in best], "accuracy")
    for kind, some in (("faint", tried), ("mark", best)):
        for trial in some:
            title = f"rank {trial.get('rank')}, {trial.get('factors')}: {trial['accuracy']:.3f}"
            chart.dot(x(trial["parameters"]), y(trial["accuracy"]), kind, title)
    return chart.markup()


def confusion(routing: RoutingReport) -> Markup:
    """Where the router sent the rows of each task: shares as colour, counts as numbers; empty for very many tasks."""
    count = len(routing.tasks)
    if not 0 < count <= MOST_CELLS:
        return Markup("")
    cell = 44 if count <= 12 else 24
    left = 12 + 6.3 * min(24, max(map(len, routing.tasks)))
    top = left * 0.75 + 8
    right = max(12.0, 4.8 * min(24, len(routing.tasks[-1])) - cell / 2)  # the last slanted name leans out
    chart = Chart(round(left + count * cell + right), round(top + count * cell + 8), "routing: task by chosen expert")
    for i, (task, row) in enumerate(zip(routing.tasks, routing.confusion, strict=True)):
        y, total = top + i * cell, max(1, sum(row))
        chart.text(left - 6, y + cell / 2 + 4, task[:24], "tick", "end")
        x = left + i * cell + cell / 2
        chart.add(f'<g transform="rotate(-45 {x:g} {top - 6:g})">')
        chart.text(x, top - 6, task[:24], "tick")
        chart.add("</g>")
        for j, rows in enumerate(row):
            title = f"{task} to {routing.tasks[j]}: {rows} of {total}"
            _cell(chart, left + j * cell, y, cell, rows, rows / total, title)
    return chart.markup()


def misrouted(routing: RoutingReport, count: int = 12) -> list[tuple[str, str, int, float]]:
    """The most frequent wrong ways: task, chosen expert, rows, share of the task's rows."""
    totals = [max(1, sum(row)) for row in routing.confusion]
    ways = (
        (routing.tasks[i], routing.tasks[j], rows, rows / totals[i])
        for i, row in enumerate(routing.confusion)
        for j, rows in enumerate(row)
        if i != j and rows
    )
    return nlargest(count, ways, key=lambda way: way[2])


def smoothed(points: Points, weight: float = 0.85) -> Points:
    """An exponential mean, corrected for its start."""
    found, mean, seen = [], 0.0, 0.0
    for step, value in points:
        mean, seen = weight * mean + (1 - weight) * value, weight * seen + (1 - weight)
        found.append((step, mean / seen))
    return tuple(found)


def _plane(sizes: Sequence[float], values: Sequence[float], split: str = "test") -> tuple[Chart, Scale, Scale]:
    """An empty chart of accuracy over parameters, its ranges a little wider than the data."""
    chart = Chart(480, 270, f"{split} accuracy over parameters")
    margin = max(0.02, 0.12 * (max(values) - min(values)))
    x = Scale(min(sizes) / 1.25, max(sizes) * 1.25, 46, 464, log=True)
    y = Scale(max(0.0, min(values) - margin), min(1.0, max(values) + margin), 222, 26)
    chart.text(46, 14, f"{split} accuracy", "title")
    chart.y_axis(y, 46, 464)
    chart.x_axis(x, 222, "adapter parameters (log scale)", 6)
    return chart, x, y


def _names(chart: Chart, spots: list[tuple[float, float, str]]) -> None:
    """Names beside points; one that would lie on another moves down, one near the right edge to the left."""
    taken: list[tuple[float, float]] = []
    for x, y, name in sorted(spots, key=lambda spot: spot[1]):
        side = x > 0.75 * chart.width
        while any(abs(x - other) < 110 and abs(y - height) < 12 for other, height in taken):
            y += 12
        taken.append((x, y))
        chart.text(x - 8 if side else x + 8, y + 4, name[:24], "tick", "end" if side else "start")


def _cell(chart: Chart, x: float, y: float, size: int, rows: int, share: float, title: str) -> None:
    square = f'<rect x="{x:g}" y="{y:g}" width="{size - 1}" height="{size - 1}"'
    chart.add(f'{square} class="cell" style="fill-opacity:{share:.3f}">{Markup("<title>")}')
    chart.add(f"{Markup.escape(title)}</title></rect>")
    if rows and size >= 40:
        chart.text(x + size / 2 - 0.5, y + size / 2 + 4, short(rows), "dark" if share > 0.5 else "tick", "middle")


def _of(curves: Sequence[Curve], which: str) -> list[Points]:
    found = [_finite(curve.loss if which == "loss" else curve.accuracy) for curve in curves]
    return [points for points in found if points]


def _finite(points: Points) -> Points:
    return tuple((step, value) for step, value in points if math.isfinite(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _resampled(points: Points) -> list[float]:
    """The values at evenly spread shares of the training: the last that was measured until then."""
    last, found, i = points[-1][0], [], 0
    for stretch in range(_STRETCHES):
        while i + 1 < len(points) and points[i + 1][0] <= last * stretch / (_STRETCHES - 1):
            i += 1
        found.append(points[i][1])
    return found


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
