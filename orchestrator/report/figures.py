"""The style of every chart, and its output as a PNG file or as SVG inside the report's page."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

# The colours of the page's light theme. In SVG they become the page's CSS variables, so charts follow a dark theme.
COLOURS = {"ink": "#1c2430", "soft": "#5d6978", "line": "#dde2e9", "loss": "#2f6fb5", "accuracy": "#c8641b",
           "good": "#1e7f4f", "paper": "#fefefe"}  # fmt: skip
INK, SOFT, LINE, LOSS, ACCURACY, GOOD, PAPER = COLOURS.values()

mpl.rcParams.update({
    "svg.fonttype": "none",  # text stays text: small files, and a page that can be searched
    "text.parse_math": False, "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
    "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT, "axes.edgecolor": SOFT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": LINE,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0,
})  # fmt: skip


def new_figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return an empty figure of ``width`` by ``height`` inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.locator_params(nbins=4)  # few ticks: labels take most of the time of drawing
    return figure, axes


def new_plane(accuracy: str, title: str) -> tuple[Figure, Axes]:
    """Return a figure of accuracy over the number of parameters, on a logarithmic axis with ticks such as ``2k``."""
    figure, axes = new_figure(6.2, 3.6, title)
    axes.set(xscale="log", xlabel="adapter parameters", ylabel=accuracy)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.minorticks_off()
    axes.margins(0.15)
    return figure, axes


def name_point(axes: Axes, x: float, y: float, name: str, *, above: bool = False) -> None:
    """Write a name below a point, to its right; or above it, to its left."""
    place: dict[str, Any] = {"xytext": (-5, 5), "ha": "right"} if above else {"xytext": (6, -12)}
    axes.annotate(name, (x, y), textcoords="offset points", fontsize=8, **place)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file with 150 dots per inch."""
    figure.savefig(path, dpi=150)


def to_svg(figure: Figure | None, label: str) -> Markup:
    """Return a figure as an ``<svg>`` element for the page, and no text for None.

    Args:
        figure: The figure. matplotlib escapes its text.
        label: A description for screen readers, unique on the page.
    """
    if figure is None:
        return Markup("")
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    width, height = figure.get_size_inches() * 72
    # Everything up to the first </defs> is the head of a file of its own. Ids of groups repeat between figures.
    text = re.sub(r'<g id="[^"]*"', "<g", file.getvalue().partition("</defs>")[2]).replace("xlink:href", "href")
    # Ids of clip paths and markers are random: number them, and make them unique on the page.
    prefix = hashlib.sha256(label.encode()).hexdigest()[:8]
    for number, name in enumerate(dict.fromkeys(re.findall(r' id="([^"]*)"', text))):
        text = re.sub(rf'(?<=["#]){re.escape(name)}(?=[")])', f"s{prefix}-{number}", text)
    for name, colour in COLOURS.items():
        text = text.replace(f": {colour}", f": var(--{name})")
    size = f'viewBox="0 0 {width:g} {height:g}" style="max-width: {width:g}pt"'
    return Markup(f'<svg {size} role="img" aria-label="{escape(label)}">{text}')
