"""Progress reports of a worker. The code that reports does not depend on who receives the reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """One progress report.

    Attributes:
        state: Current activity, such as "training" or "testing".
        step: Number of finished steps.
        steps: Total number of steps; 0 if the activity has none.
        metrics: Metrics measured at this step.
        left: Estimated seconds until the end of the steps; None if unknown.
        key: The task the report is about, if one process reports for several.
    """

    state: str
    step: int = 0
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    left: float | None = None
    key: str = ""


class ProgressCallback(Protocol):
    """Receives progress reports. Must return quickly and must not raise."""

    def __call__(self, progress: Progress) -> None:
        """Receive one report."""
