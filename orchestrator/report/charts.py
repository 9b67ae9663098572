"""The charts of the report. The Pareto front and the confusion matrix are also PNG files of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from orchestrator.report.content import Curve, ExpertRow, Points
from orchestrator.report.figures import ACCURACY, INK, LOSS, name_point, new_figure, new_plane

MAX_COUNTED_TASKS = 25  # a larger confusion matrix contains no counts
_SHARES = np.linspace(0, 1, 25)  # the shares of a training at which curves of different lengths are compared
_SHADES = LinearSegmentedColormap.from_list("shades", [f"{LOSS}00", LOSS])  # from transparent


def draw_learning_curve(curve: Curve) -> Figure:
    """Draw one expert's training loss (left axis; raw and smoothed) and validation accuracy (right axis) by step."""
    figure, axes = new_figure(3.7, 2.0, curve.task if len(curve.task) <= 34 else curve.task[:33] + "…")
    (steps, loss), (checks, accuracy) = _finite(curve.loss), _finite(curve.accuracy)
    smooth = smooth_curve(loss)
    axes.plot(steps, loss, color=LOSS, alpha=0.3, linewidth=0.7)
    axes.plot(steps, smooth, color=LOSS)
    # The axis ends where the smoothed loss does: one extreme batch must not flatten the rest.
    axes.set(xlim=(0, max([1, *steps, *checks])), ylim=(0, smooth.max(initial=0) * 1.05 or 1))
    axes.tick_params("y", labelcolor=LOSS)
    right = axes.twinx()
    right.plot(checks, accuracy, "o-", color=ACCURACY, markersize=3, markevery=1 if len(checks) <= 12 else [-1])
    right.set_ylim(0, 1)
    right.grid(False)
    right.locator_params(nbins=4)
    right.tick_params("y", labelcolor=ACCURACY)
    return figure


def draw_bands(curves: Sequence[Curve], metric: str) -> Figure | None:
    """Draw median, quartiles and 5th to 95th percentile over experts by share of the training; None without data.

    Args:
        curves: Curves, which may differ in length.
        metric: ``loss`` (smoothed first) or ``accuracy``.
    """
    lines = [_at_shares(points, metric) for curve in curves if (points := _finite(getattr(curve, metric))).size]
    if not lines:
        return None
    name, colour = ("Training loss", LOSS) if metric == "loss" else ("Validation accuracy", ACCURACY)
    lowest, low, median, high, highest = np.quantile(lines, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    figure, axes = new_figure(5, 2.6, f"{name}, {len(lines)} experts")
    axes.fill_between(_SHARES, lowest, highest, color=colour, alpha=0.15, linewidth=0)
    axes.fill_between(_SHARES, low, high, color=colour, alpha=0.3, linewidth=0)
    axes.plot(_SHARES, median, color=colour)
    axes.set(xlim=(0, 1), ylim=(0, 1 if metric == "accuracy" else highest.max() * 1.05 or 1), xlabel="of the training")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def draw_quality(rows: Sequence[ExpertRow]) -> Figure | None:
    """Draw test accuracy against adapter parameters, one point for each expert; None if no expert has both."""
    points = [
        (row.parameters, row.accuracy, row.task)
        for row in rows
        if row.parameters and row.accuracy is not None and math.isfinite(row.accuracy)
    ]
    if not points:
        return None
    figure, axes = new_plane("test accuracy", "")
    parameters, accuracies, _ = zip(*points, strict=True)
    axes.scatter(parameters, accuracies, color=LOSS, alpha=0.75 if len(points) <= 60 else 0.35, linewidth=0)
    names: dict[tuple[int, float], list[str]] = {}
    for size, accuracy, task in points if len(points) <= 12 else []:
        names.setdefault((size, round(accuracy, 2)), []).append(task[:24])
    for (size, accuracy), tasks in names.items():  # labels of equal points would be drawn on top of each other
        name_point(axes, size, accuracy, ", ".join(tasks))
    return figure


def draw_confusion(counts: Sequence[Sequence[int]], tasks: Sequence[str]) -> Figure:
    """Draw which expert the router chose (columns) for the test rows of each task (rows).

    Colours are shares of a task's rows. More than ``MAX_COUNTED_TASKS`` tasks are drawn without counts, and of more
    than twice as many only some are named.

    Args:
        counts: Numbers of test rows, ``(tasks, tasks)``.
        tasks: Names of the tasks.
    """
    size = min(20.0, max(4.0, (0.5 if len(tasks) <= 12 else 0.32) * len(tasks) + 2.5))
    figure, axes = new_figure(size, size * 0.85, "Routing of the mixed test rows")
    axes.grid(False)
    shares = np.array(counts) / np.maximum(1, np.sum(counts, axis=1, keepdims=True))
    image = axes.imshow(shares, cmap=_SHADES, vmin=0, vmax=1)
    named = range(0, len(tasks), -(-len(tasks) // (2 * MAX_COUNTED_TASKS)))
    slant = {"rotation": 30, "ha": "right"} if len(tasks) <= 12 else {"rotation": 90}
    axes.set_xticks(named, [tasks[i] for i in named], **slant)
    axes.set_yticks(named, [tasks[i] for i in named])
    axes.set(xlabel="chosen expert", ylabel="task of the row")
    for i, j in np.argwhere(shares) if len(tasks) <= MAX_COUNTED_TASKS else ():
        colour = "white" if shares[i, j] > 0.5 else INK
        axes.text(j, i, str(counts[i][j]), ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, label="share of the task's rows", shrink=0.85)
    return figure


def smooth_curve(values: np.ndarray, weight: float = 0.85) -> np.ndarray:
    """Return the exponential moving average, without the bias towards zero at the start."""
    weights = weight ** np.arange(len(values))
    return np.convolve(values, weights)[: len(values)] / np.cumsum(weights) if len(values) else values


def _finite(points: Points) -> np.ndarray:
    """Return the steps and the values, ``(2, points)``, without infinite values and NaN."""
    columns = np.array(points, dtype=float).reshape(-1, 2).T
    return columns[:, np.isfinite(columns[1])]


def _at_shares(points: np.ndarray, metric: str) -> np.ndarray:
    """Return the last value measured before each share of the training."""
    steps, values = points
    indices = np.searchsorted(steps, _SHARES * steps[-1], side="right") - 1
    return (smooth_curve(values) if metric == "loss" else values)[indices.clip(0)]
