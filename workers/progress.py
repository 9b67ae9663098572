"""What a worker says while it works. Who listens, and where, is not its business."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """One report: ``state`` in words, how many of ``steps`` are done, the metrics measured now, seconds left.

    ``key`` names the piece of work where one process reports for several.
    """

    state: str
    step: int = 0
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    left: float | None = None
    key: str = ""


class ProgressCallback(Protocol):
    """Takes progress; must be quick and must not fail."""

    def __call__(self, progress: Progress) -> None:
        """Take one report."""
