"""Findings to one table, and the page RESULTS.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Finding:
    """One line of the table. ``ratio`` is ours to the other's; ``met`` is None for a line without a goal."""

    what: str
    ours: str
    peer: str
    ratio: str
    goal: str = ""
    met: bool | None = None


HEADS = ("what", "ours", "peer or limit", "ratio", "goal", "met")


def at_most(ratio: float, limit: float) -> tuple[str, str, bool]:
    """The cells ratio, goal and met of a goal that is a largest ratio, judged as it is printed."""
    return f"{ratio:.2f}", f"≤ {limit:.2f}", round(ratio, 2) <= limit


def at_least(times: float, limit: float) -> tuple[str, str, bool]:
    """The same of a smallest number of times faster."""
    return f"{times:.1f} times faster", f"≥ {limit:g} times", round(times, 1) >= limit


def cells(finding: Finding) -> list[str]:
    met = {None: "", True: "yes", False: "**no**"}[finding.met]
    return [*(getattr(finding, field.name) for field in fields(Finding)[:-1]), met]


def markdown(findings: Sequence[Finding]) -> str:
    rows = [list(HEADS), ["---"] * len(HEADS), *map(cells, findings)]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows)


def plain(findings: Sequence[Finding]) -> str:
    """The same in columns, for a terminal."""
    rows = [list(HEADS), *map(cells, findings)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
