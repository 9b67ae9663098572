"""The two plots of a run, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.rcParams["font.size"] = 9

READABLE = 25  # tasks whose names and counts can be read in one picture
LARGEST = 20.0  # inches of a side, whatever the number of tasks


def plot_confusion(counts: Sequence[Sequence[int]], tasks: Sequence[str], path: Path) -> None:
    """Which expert the router chose (columns) for the test rows of each task (rows): shares as colour, and counts.

    Of many tasks every so many-th has its name, and the counts are left to the numbers that lie beside the picture.
    """
    size = min(LARGEST, max(4.0, 0.7 * len(tasks) + 2.5))
    figure = Figure(figsize=(size, size * 0.85), layout="constrained")
    axes = figure.subplots()
    shares = [[cell / total for cell in row] for row, total in ((row, max(1, sum(row))) for row in counts)]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    named = range(0, len(tasks), -(-len(tasks) // (2 * READABLE)))
    slant = {"rotation": 30, "ha": "right"} if len(tasks) <= READABLE else {"rotation": 90}
    axes.set_xticks(named, [tasks[i] for i in named], **slant)
    axes.set_yticks(named, [tasks[i] for i in named])
    axes.set(xlabel="chosen expert", ylabel="task of the row", title="Routing of the mixed test rows")
    for i, row in enumerate(counts if len(tasks) <= READABLE else []):
        for j, count in enumerate(row):
            colour = "white" if shares[i][j] > 0.5 else "black"
            axes.text(j, i, str(count), ha="center", va="center", color=colour)
    figure.colorbar(image, label="share of the task's rows", shrink=0.85)
    figure.savefig(path, dpi=150)


def plot_pareto(trials: Sequence[dict], front: Sequence[dict], path: Path, title: str) -> None:
    """Validation accuracy against adapter parameters: every trial, and the front of those that none beats in both."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(
        [t["parameters"] for t in trials],
        [t["accuracy"] for t in trials],
        color="0.6",
        label="trial",
        zorder=2,
    )
    best = sorted(front, key=lambda t: t["parameters"])
    axes.plot(
        [t["parameters"] for t in best],
        [t["accuracy"] for t in best],
        "o-",
        color="tab:blue",
        label="Pareto front",
        zorder=3,
    )
    for trial in best:
        axes.annotate(
            f"rank {trial['rank']}, {trial['factors']}",
            (trial["parameters"], trial["accuracy"]),
            xytext=(6, -12),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set(xlabel="adapter parameters", ylabel="validation accuracy", title=title)
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
