"""The charts of a search: its trials with the Pareto front, the finalists, importances and hypervolume."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from orchestrator.report.figures import ACCURACY, GOOD, LOSS, SOFT, name_point, new_figure, new_plane
from orchestrator.report.parallel_axes import accuracy_range
from orchestrator.report.search_content import Trials

MAX_FINALISTS = 12
_MARKS = {
    "trial": "o",
    "stopped early": ".",
    "parent": "*",
    "cut": "s",
    "retrained": "^",
    "shared": "v",
    "confirming": "x",
}
_NAME_SIZE = (0.5, 0.09)  # of a point of the front, as shares of the front's width and height


def draw_trials(
    trials: Trials, front: Trials, task: str, references: Trials = (), winner: Mapping[str, Any] | None = None
) -> Figure:
    """Draw validation accuracy against adapter parameters: the trials of a search, and the Pareto front.

    Args:
        trials: The trials.
        front: The trials of the front.
        task: Name of the task.
        references: Adapters to compare with, each with a ``name``.
        winner: The recommended point.
    """
    figure, axes = new_plane("validation accuracy", f"Ranks and shapes for {task}")
    best = sorted(front, key=lambda trial: (trial["parameters"], trial["accuracy"]))
    known = [each for each in references if each.get("accuracy") is not None]
    lowest = _cut_axis(axes, [*best, *known], trials)
    for name, mark in _MARKS.items():
        group = [trial for trial in trials if _mark_of(trial) == name]
        below = sum(trial["accuracy"] < lowest for trial in group)
        label = f"{name} ({below} below)" if below else name
        group = [trial for trial in group if trial["accuracy"] >= lowest]
        if group or below:
            axes.plot(*_coordinates(group), mark, color=SOFT, alpha=0.6, markersize=5, label=label)
    axes.plot(*_coordinates(best), drawstyle="steps-post", color=LOSS, linewidth=1.2, label="Pareto front")
    for name, mark in _MARKS.items():
        axes.plot(*_coordinates([trial for trial in best if _mark_of(trial) == name]), mark, color=LOSS, markersize=6)
    if known:
        axes.plot(*_coordinates(known), "D", color=ACCURACY, markersize=6, label="LoRA")
    if winner:
        (ring,) = axes.plot(winner["parameters"], winner["accuracy"], "o", color=GOOD, label="recommended")
        ring.set(markersize=13, markeredgewidth=1.8, fillstyle="none")
    for each in known:
        name_point(axes, each["parameters"], each["accuracy"], each["name"])
    for trial in _spaced(best, winner):
        name = f"rank {trial['rank']}, {trial['factors']}"
        name_point(axes, trial["parameters"], trial["accuracy"], name, above=True)  # where no trial can be
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def draw_finalists(finalists: Trials, winner: Mapping[str, Any] | None) -> Figure | None:
    """Draw the accuracy of each seed of the repeated points, with mean and standard deviation; None without any."""
    if not finalists:
        return None
    shown = sorted(finalists, key=lambda each: each["accuracy"])[-MAX_FINALISTS:]
    figure, axes = new_figure(6.2, 0.9 + 0.32 * len(shown), "")
    for row, each in enumerate(shown):
        colour = GOOD if winner and each["point"] == winner["point"] else LOSS
        mean, spread, seeds = each["accuracy"], each["spread"], each["accuracies"]
        axes.plot([mean - spread, mean + spread], [row, row], color=colour, alpha=0.35, linewidth=6)
        axes.plot(seeds, [row] * len(seeds), "o", color=colour, alpha=0.7, markersize=4)
        axes.plot(mean, row, "|", color=colour, markersize=14, markeredgewidth=2)
    names = [f"rank {each['rank']}, {each['factors']}\n{each['parameters']:,} parameters" for each in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set(ylim=(-0.6, len(shown) - 0.4), xlabel="validation accuracy")
    axes.margins(x=0.08)
    return figure


def draw_importances(importances: Mapping[str, float]) -> Figure:
    """Draw the share of each choice in what tells the most accurate trials from the others."""
    names = sorted(importances, key=lambda name: importances[name])
    figure, axes = new_figure(6.2, 0.7 + 0.24 * len(names), "")
    values = [importances[name] for name in names]
    axes.barh(names, values, color=LOSS, height=0.6)
    for row, value in enumerate(values):
        axes.annotate(f"{value:.0%}", (value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, max([*values, 0.01]) * 1.12)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", visible=False)
    return figure


def draw_hypervolume(hypervolumes: Sequence[float], volume_label: str) -> Figure | None:
    """Draw the hypervolume of the front by the number of trials; None for fewer than two."""
    if len(hypervolumes) < 2:
        return None
    figure, axes = new_figure(6.2, 2.4, "")
    counts = range(1, len(hypervolumes) + 1)
    # Only the trials that changed it are drawn, and the last one: a thousand points are as many as a screen is wide.
    kept = [i for i in range(len(counts)) if i in (0, len(counts) - 1) or hypervolumes[i] != hypervolumes[i - 1]]
    x, y = [counts[i] for i in kept], [hypervolumes[i] for i in kept]
    axes.plot(x, y, drawstyle="steps-post", color=LOSS)
    axes.set(xlabel="trials", ylabel=volume_label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.margins(x=0.02, y=0.1)
    return figure


def _mark_of(trial: Mapping[str, Any]) -> str:
    origin = trial.get("origin", "sampled")  # version 0.1.0 recorded none
    if origin in _MARKS:
        return str(origin)
    return "stopped early" if trial.get("state") == "stopped" else "trial"


def _cut_axis(axes: Axes, important: Trials, trials: Trials) -> float:
    """Set the accuracy axis to what is important, so that trials that learned nothing do not flatten the rest.

    Returns:
        The lowest accuracy that is drawn.
    """
    if not important:
        return -math.inf
    low, high = accuracy_range([each["accuracy"] for each in important])
    lowest = low - 0.5 * (high - low)
    top = max([high, *(trial["accuracy"] for trial in trials)])
    axes.set_ylim(lowest, top + 0.12 * (top - lowest))
    return lowest


def _spaced(front: Trials, winner: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the points of a front whose names do not cover each other; that of the winner is one of them."""
    places = [(math.log10(max(1, trial["parameters"])), trial["accuracy"]) for trial in front]
    widths = [_NAME_SIZE[i] * (max(values) - min(values)) for i, values in enumerate(zip(*places, strict=True))]
    order = sorted(range(len(front)), key=lambda i: winner is not None and front[i].get("point") != winner["point"])
    named: list[int] = []
    for i in order:
        distances = [[abs(places[i][axis] - places[j][axis]) for axis in (0, 1)] for j in named]
        if all(x > widths[0] or y > widths[1] for x, y in distances):
            named.append(i)
    return [front[i] for i in named]


def _coordinates(trials: Trials) -> tuple[list[float], list[float]]:
    return [trial["parameters"] for trial in trials], [trial["accuracy"] for trial in trials]
