"""Axes and marks as SVG text: small, sharp at any size, and in the page's own colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Pair = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """From values in ``low..high`` to pixels in ``start..end``; with ``log``, evenly in their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = map(self._flat, (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def _flat(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, count: int) -> list[float]:
        """About so many round values in the range."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            inside = [value for value in values if self.low <= value <= self.high]
            return inside[:: -(-len(inside) // count)] if inside else [self.low]
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 10) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass
class Chart:
    """A chart that is drawn piece by piece; ``label`` is what a screen reader says of it."""

    width: int
    height: int
    label: str
    parts: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Put further SVG on top."""
        self.parts.append(text)

    def text(self, x: float, y: float, what: object, kind: str = "", anchor: str = "start") -> None:
        """Words; escaped."""
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(what)}</text>')

    def line(self, points: Iterable[Pair], kind: str) -> None:
        """A line through points in pixels."""
        if path := " ".join(f"{x:g},{y:g}" for x, y in points):
            self.add(f'<polyline points="{path}" class="{kind}"/>')

    def area(self, upper: Sequence[Pair], lower: Sequence[Pair], kind: str) -> None:
        """What lies between two lines."""
        path = " ".join(f"{x:g},{y:g}" for x, y in [*upper, *reversed(lower)])
        self.add(f'<polygon points="{path}" class="{kind}"/>')

    def dot(self, x: float, y: float, kind: str, title: str, radius: float = 4) -> None:
        """A point that says ``title`` when it is pointed at."""
        self.add(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" class="{kind}"><title>{escape(title)}</title></circle>')

    def x_axis(self, scale: Scale, bottom: float, name: str = "", count: int = 4) -> None:
        """Ticks below, with the name of what is measured."""
        self.add(f'<line x1="{scale.start:g}" x2="{scale.end:g}" y1="{bottom:g}" y2="{bottom:g}" class="axis"/>')
        for value in scale.ticks(count):
            self.text(scale(value), bottom + 13, short(value), "tick", "middle")
        if name:
            self.text((scale.start + scale.end) / 2, bottom + 28, name, "name", "middle")

    def y_axis(self, scale: Scale, left: float, right: float, kind: str = "", *, far: bool = False) -> None:
        """Ticks on the left, or on the ``far`` side; the near one brings the grid."""
        for value in scale.ticks(4):
            y = scale(value)
            if not far:
                self.add(f'<line x1="{left:g}" x2="{right:g}" y1="{y:g}" y2="{y:g}" class="grid"/>')
            self.text(right + 5 if far else left - 5, y + 3.5, short(value), f"tick {kind}", "start" if far else "end")

    def markup(self) -> Markup:
        """The whole, to be put into a page."""
        head = f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.label)}">'
        return Markup(head + "".join(self.parts) + "</svg>")


def short(value: float) -> str:
    """A number as an axis says it: ``0.85``, ``12k``, ``3.5M``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less than ``rough``."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
