"""Finalists and winner: the points of a task that are worth their parameters, over all seeds that were trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, mean, stdev

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
        """Mean validation loss over the seeds; infinite if one of them is no finite number."""
        losses = [trial.loss for trial in self.trials]
        return fmean(losses) if all(map(math.isfinite, losses)) else math.inf

    @property
    def loss_error(self) -> float:
        """Standard error of the mean loss; infinite for a single seed and for an infinite loss."""
        if len(self.trials) == 1 or not math.isfinite(self.loss):
            return math.inf
        return stdev(trial.loss for trial in self.trials) / math.sqrt(len(self.trials))

    def is_dominated(self, others: Iterable[Candidate]) -> bool:
        """Return whether another one is at least as good in accuracy, loss and parameters, and better in one."""
        return any(
            other.accuracy >= self.accuracy
            and other.loss <= self.loss
            and other.parameters <= self.parameters
            and (other.accuracy, other.loss, other.parameters) != (self.accuracy, self.loss, self.parameters)
            for other in others
        )


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
    """Return the points that may win: those that no other dominates, and nearly as accurate as the best.

    Args:
        trials: All trials of a task.
        count: Largest number of finalists. Of more, the most accurate ones are returned.
        within: Accuracy by which a finalist may be below the best point; twice as much, because of the noise that the
            repetitions are to remove.
    """
    found = candidates(trials)
    front = [each for each in found if not each.is_dominated(found)]
    best = max((each.accuracy for each in front), default=0.0)
    near = [each for each in front if each.accuracy >= best - 2 * within]
    return sorted(near, key=lambda each: (-each.accuracy, each.parameters))[:count]


def as_good_as_best(found: Sequence[Candidate], within: float) -> list[Candidate]:
    """Return the points that validation rows cannot tell from the best one.

    If points have been repeated with other seeds, only these are compared: a single seed that happened to be good does
    not win. Their mean accuracy is at most ``within`` below the best mean, and with several seeds their mean loss is at
    most one standard error above the lowest of these (the one-standard-error rule of Breiman et al.,
    *Classification and Regression Trees*, 1984, section 3.4.3): of a few hundred rows, accuracy counts those that
    change sides, while the loss reads how far each one is from it.
    """
    compared = [each for each in found if len(each.trials) > 1] or found
    best = max((each.accuracy for each in compared), default=0.0)
    near = [each for each in compared if each.accuracy >= best - within]
    surest = min(near, key=lambda each: each.loss, default=None)
    return [each for each in near if surest and each.loss <= surest.loss + surest.loss_error]


def choose_winner(trials: Sequence[Trial], within: float) -> Candidate | None:
    """Return the point with the fewest parameters that is as good as the best, see ``as_good_as_best``.

    Without any complete trial, return None.
    """
    near = as_good_as_best(candidates(trials), within)
    return min(near, key=lambda each: (each.parameters, -each.accuracy, each.loss), default=None)
