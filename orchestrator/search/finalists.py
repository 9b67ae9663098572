"""Finalists and winner: the points of a task that are worth their parameters, over all seeds that were trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from orchestrator.search.pareto import is_dominated
from orchestrator.search.trial import Trial


@dataclass(frozen=True)
class Candidate:
    """A point and the complete trials of it, one for each seed.

    Attributes:
        trials: The trials, that of the task's own seed first.
    """

    trials: tuple[Trial, ...]

    @property
    def parameters(self) -> int:
        """Adapter parameters."""
        return self.trials[0].parameters

    @property
    def accuracy(self) -> float:
        """Mean validation accuracy over the seeds."""
        return mean(trial.accuracy for trial in self.trials)

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy over the seeds; 0 for a single one."""
        return stdev(trial.accuracy for trial in self.trials) if len(self.trials) > 1 else 0.0

    @property
    def loss(self) -> float:
        """Mean validation loss over the seeds."""
        return mean(trial.loss for trial in self.trials)


def small_enough(trials: Sequence[Trial], most: int | None) -> list[Trial]:
    """Return the trials with at most ``most`` parameters: what is trained to be cut may have more."""
    return [trial for trial in trials if most is None or trial.parameters <= most]


def candidates(trials: Sequence[Trial]) -> list[Candidate]:
    """Return the points of all trials that were trained to the end, or cut from one that was.

    A cut counts until a trial of its point is trained: a config with this point trains it too.
    """
    by_point: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda each: (each.seed, each.number)):
        if trial.state == "finished" and trial.is_measured and trial.origin != "reference":
            by_point.setdefault(trial.point_key, []).append(trial)
    for point, found in by_point.items():
        by_point[point] = [trial for trial in found if trial.origin != "cut"] or found
    return [Candidate(tuple(found)) for found in by_point.values()]


def choose_finalists(trials: Sequence[Trial], count: int, within: float) -> list[Candidate]:
    """Return the points that may win: on the Pareto front, and nearly as accurate as the best.

    Args:
        trials: All trials of a task.
        count: Largest number of finalists. Of more, the most accurate ones are returned.
        within: Accuracy by which a finalist may be below the best point; twice as much, because of the noise that the
            repetitions are to remove.
    """
    found = candidates(trials)
    values = [{"accuracy": each.accuracy, "parameters": each.parameters} for each in found]
    front = [each for each, value in zip(found, values, strict=True) if not is_dominated(value, values)]
    best = max((each.accuracy for each in front), default=0.0)
    near = [each for each in front if each.accuracy >= best - 2 * within]
    return sorted(near, key=lambda each: (-each.accuracy, each.parameters))[:count]


def choose_winner(trials: Sequence[Trial], within: float) -> Candidate | None:
    """Return the point with the fewest parameters whose mean accuracy is at most ``within`` below the best mean.

    If points have been repeated with other seeds, only these are compared: a single seed that happened to be good does
    not win. Without any complete trial, return None.
    """
    found = candidates(trials)
    compared = [each for each in found if len(each.trials) > 1] or found
    best = max((each.accuracy for each in compared), default=0.0)
    near = [each for each in compared if each.accuracy >= best - within]
    return min(near, key=lambda each: (each.parameters, -each.accuracy, each.loss), default=None)
