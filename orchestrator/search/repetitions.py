"""What every method ends with: repetitions of the finalists with other seeds, and LoRA adapters for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.plan.choosing import Point
from orchestrator.search.finalists import choose_finalists, small_enough
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
        references: Ranks of LoRA adapters that are trained for comparison.
        max_parameters: Largest number of parameters of a finalist; None for any.
    """

    trials: int
    confirm: int = 0
    finalists: int = 4
    within: float = 0.005
    references: tuple[int, ...] = ()
    max_parameters: int | None = None


def next_repetition(
    trials: Sequence[Trial], size: SearchSize, add: Callable[[Point, Origin, int], Trial]
) -> Trial | None:
    """Return the next repetition of a finalist, once all points have their results; None if there is none.

    Args:
        trials: All trials of the task.
        size: How much may be trained.
        add: Adds a trial of a point, origin and seed.
    """
    first_seed = [trial for trial in trials if trial.seed == 0 and trial.origin not in ("confirming", "reference")]
    if not size.confirm or not all(trial.has_ended for trial in first_seed):
        return None
    # A cut is no training: its point is trained with the task's own seed, too.
    made = {(trial.point_key, trial.seed) for trial in trials if trial.origin != "cut"}
    finalists = choose_finalists(small_enough(first_seed, size.max_parameters), size.finalists, size.within)
    # Seed by seed, so that all finalists have nearly as many if a budget ends the search.
    for seed in range(size.confirm + 1):
        for finalist in finalists:
            if (finalist.trials[0].point_key, seed) not in made:
                return add(finalist.trials[0].point, "confirming", seed)
    return None


def next_reference(
    trials: Sequence[Trial], size: SearchSize, add: Callable[[Point, Origin, int], Trial]
) -> Trial | None:
    """Return the next LoRA adapter for comparison; None if all are made, or there is nothing to compare with.

    The arguments are as above.
    """
    if not any(trial.is_measured and trial.origin != "reference" for trial in trials):
        return None
    made = [trial.point for trial in trials if trial.origin == "reference"]
    points = ({"lora": rank} for rank in size.references)
    return next((add(point, "reference", 0) for point in points if point not in made), None)
