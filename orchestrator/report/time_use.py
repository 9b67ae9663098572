"""Where the seconds of stage 1 went: for the run in seconds of its workers, and for each expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.plan.quantities import format_duration
from workers.stopwatch import ACTIVITIES

_MOST_ROWS = 20
_LEAST_SHARE = 0.005  # of a part that the summary names


@dataclass(frozen=True)
class ExpertTime:
    """The seconds of one expert.

    Attributes:
        name: Its task; of a row that sums several, what they are.
        total: Seconds of all activities, or of the job if they were not measured; None if neither was.
        parts: Seconds by activity; empty if they were not measured.
        recording: Seconds of the driver's requests to MLflow.
    """

    name: str
    total: float | None
    parts: Mapping[str, float]
    recording: float

    @classmethod
    def of(cls, task: str, metrics: Mapping[str, float], recording: float) -> ExpertTime:
        """Return the seconds that are among an expert's metrics."""
        parts = {name: metrics[f"seconds.{name}"] for name in ACTIVITIES if f"seconds.{name}" in metrics}
        return cls(task, sum(parts.values()) if parts else metrics.get("seconds.job"), parts, recording)


@dataclass(frozen=True)
class TimeUse:
    """Where the seconds of a run's stage 1 went.

    Attributes:
        experts: The experts that the run registered.
        busy: Seconds in which workers had work, summed over workers.
        waiting: Seconds in which workers had none, the start of their processes included, summed over workers.
        recording: Seconds of all requests to MLflow, which the driver makes beside the training.
    """

    experts: tuple[ExpertTime, ...] = ()
    busy: float = 0.0
    waiting: float = 0.0
    recording: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """The seconds of workers by activity, ``other`` (imports, failed attempts, cleaning up) and ``waiting``."""
        activities = {name: sum(each.parts.get(name, 0.0) for each in self.experts) for name in ACTIVITIES}
        # An expert that was resumed brings seconds of an earlier run.
        other = max(0.0, self.busy - sum(activities.values()))
        return {**activities, "other": other, "waiting": self.waiting}

    @property
    def total(self) -> float:
        """The sum of all parts in seconds."""
        return sum(self.parts.values())

    def shares(self) -> dict[str, float]:
        """Return each part's share of the total."""
        total = self.total or 1.0
        return {name: seconds / total for name, seconds in self.parts.items()}

    def slowest(self) -> list[ExpertTime]:
        """Return the experts by time, the slowest first; of a long list, the end is summed in one row."""
        ordered = sorted(self.experts, key=lambda each: -(each.total or 0.0))
        # A single expert takes no more room than a sum of one.
        return ordered if len(ordered) <= _MOST_ROWS + 1 else [*ordered[:_MOST_ROWS], _sum(ordered[_MOST_ROWS:])]

    def describe(self) -> str:
        """Return the shares in one line, the largest first; an empty text if nothing was measured."""
        if not self.busy:
            return ""
        shares = sorted(self.shares().items(), key=lambda item: -item[1])
        parts = ", ".join(f"{share:.0%} {name}" for name, share in shares if share >= _LEAST_SHARE)
        return f"Stage 1, {format_duration(self.total)} of worker time: {parts}."


def _sum(experts: Sequence[ExpertTime]) -> ExpertTime:
    totals = [each.total for each in experts if each.total is not None]
    names = {name for each in experts for name in each.parts}
    parts = {name: sum(each.parts.get(name, 0.0) for each in experts) for name in names}
    recording = sum(each.recording for each in experts)
    return ExpertTime(f"the other {len(experts)}", sum(totals) if totals else None, parts, recording)
