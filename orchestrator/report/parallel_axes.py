"""Trials as lines through parallel axes, one for each choice of a search and one for the accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.report.figures import GOOD, LINE, LOSS, PAPER, SOFT, new_figure
from orchestrator.report.search_content import Trials, option_text

_MAX_NAMED_OPTIONS = 12  # of one choice
_ABSENT = "none"
_TOP = 0.1  # share of the trials that are drawn as the most accurate ones
_FOOT = 0.1  # share of the trials that may be below the axis of the accuracy
_JITTER = 0.25  # of the distance between two options, so that equal choices are not one line


def draw_choices(trials: Trials, names: Sequence[str], winner: Mapping[str, Any] | None) -> Figure | None:
    """Draw trials as lines through parallel axes, one for each choice and one for the accuracy.

    Args:
        trials: Trials with an accuracy.
        names: The choices. Those with one option in all trials are left out.
        winner: The recommended point.

    Returns:
        The figure; None if no choice differs between the trials.
    """
    options = {name: _options([*trials, *([winner] if winner else [])], name) for name in names}
    options = {name: found for name, found in options.items() if len(found) > 1}
    if not options:
        return None
    figure, axes = new_figure(max(6.2, 0.95 * (len(options) + 1)), 3.4, "")
    axes.grid(False)
    axes.axis("off")
    axes.set(xlim=(-0.4, len(options) + 0.5), ylim=(-0.02, 1.1))
    ordered = sorted(trials, key=lambda trial: trial["accuracy"])
    low, high = accuracy_range([trial["accuracy"] for trial in ordered[round(_FOOT * (len(ordered) - 1)) :]])

    def heights(trial: Mapping[str, Any], accuracy: float, jitter: float) -> list[float]:
        found = []
        for name, values in options.items():
            gap = 1 / len(values)
            found.append((values.index(_text_of(trial["point"], name)) + 0.5 + jitter) * gap)
        return [*found, max(0.0, (accuracy - low) / (high - low))]

    top = max(1, round(_TOP * len(ordered)))
    jitters = [_JITTER * (2 * (7 * i % 16) / 15 - 1) for i in range(len(ordered))]
    lines = [heights(*each) for each in zip(ordered, (t["accuracy"] for t in ordered), jitters, strict=True)]
    _draw_lines(axes, lines[:-top], color=SOFT, alpha=0.3, linewidth=0.7, label="trial")
    _draw_lines(axes, lines[-top:], color=LOSS, alpha=0.75, linewidth=1, label="the most accurate tenth")
    if winner:
        line = heights(winner, min(winner["accuracy"], high), 0)
        _draw_lines(axes, [line], color=GOOD, linewidth=2.2, label="recommended")
    _draw_scales(axes, options, low, high)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def accuracy_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value, at least two points of accuracy apart."""
    low, high = min(values), max(values)
    missing = max(0.0, 0.02 - (high - low))
    return low - missing / 2, high + missing / 2


def _options(trials: Trials, name: str) -> list[str]:
    """Return the options of a choice that the trials have, numbers in their order, as text."""
    found = {_text_of(trial["point"], name): trial["point"].get(name) for trial in trials}
    numeric = all(isinstance(value, int | float) for text, value in found.items() if text != _ABSENT)
    return sorted(found, key=lambda text: (text != _ABSENT, found[text] if numeric and text != _ABSENT else 0, text))


def _text_of(point: Mapping[str, Any], name: str) -> str:
    return option_text(point[name]) if name in point else _ABSENT


def _draw_lines(axes: Axes, lines: Sequence[Sequence[float]], **style: Any) -> None:
    """Draw lines as one path, which is a tenth as long as one for each."""
    if lines:
        x = [*range(len(lines[0])), math.nan] * len(lines)
        axes.plot(x, [height for line in lines for height in (*line, math.nan)], **style)


def _draw_scales(axes: Axes, options: Mapping[str, Sequence[str]], low: float, high: float) -> None:
    for x, (name, values) in enumerate(options.items()):
        step = -(-len(values) // _MAX_NAMED_OPTIONS)
        named = {(i + 0.5) / len(values): value for i, value in enumerate(values) if i % step == 0}
        _draw_scale(axes, x, name, named)
    ticks = MaxNLocator(4).tick_values(low, high)
    inside = [value for value in ticks if low <= value <= high]
    _draw_scale(axes, len(options), "accuracy", {(value - low) / (high - low): f"{value:.3g}" for value in inside})


def _draw_scale(axes: Axes, x: int, name: str, ticks: Mapping[float, str]) -> None:
    axes.plot([x, x], [0, 1], color=LINE, linewidth=1)
    title = name if len(name) <= 16 else name[:15] + "…"
    axes.annotate(title, (x, 1.04), ha="center", fontsize=8, fontweight="bold")
    for y, text in ticks.items():
        short = text if len(text) <= 14 else text[:13] + "…"
        ground = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        axes.annotate(
            short, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, bbox=ground, zorder=5
        )
