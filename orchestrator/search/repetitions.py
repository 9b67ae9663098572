"""The repetitions of finalists with other seeds, which every method ends with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.plan.choosing import Point
from orchestrator.search.finalists import choose_finalists
from orchestrator.search.trial import Origin, Trial


class TrialMaker(Protocol):
    """Makes the trials of a task."""

    def __call__(self, number: int, point: Point, origin: Origin, seed: int = 0) -> Trial:
        """Return a new trial."""


@dataclass(frozen=True)
class SearchSize:
    """How much one task's search may train.

    Attributes:
        trials: Number of trials that are sampled; for cuts, the number of doubtful ranks that are trained.
        confirm: Number of further seeds for each finalist.
        finalists: Largest number of finalists.
        within: Accuracy by which the winner may be below the best finalist.
    """

    trials: int
    confirm: int = 0
    finalists: int = 4
    within: float = 0.005


def next_repetition(
    trials: Sequence[Trial], size: SearchSize, add: Callable[[Point, Origin, int], Trial]
) -> Trial | None:
    """Return the next repetition of a finalist, once all points have their results; None if there is none.

    Args:
        trials: All trials of the task.
        size: How much may be trained.
        add: Adds a trial of a point, origin and seed.
    """
    first_seed = [trial for trial in trials if trial.seed == 0]
    if not all(trial.has_ended for trial in first_seed):
        return None
    made = {(trial.point_key, trial.seed) for trial in trials}
    for finalist in choose_finalists(first_seed, size.finalists, size.within):
        first = finalist.trials[0]
        for seed in range(1, size.confirm + 1):
            if (first.point_key, seed) not in made:
                return add(first.point, "confirming", seed)
    return None
