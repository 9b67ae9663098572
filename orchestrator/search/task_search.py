"""The search of one task: which trial is trained next, and what becomes of it at a rung. Nothing here trains."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.plan.choosing import Point
from orchestrator.search.halving import Halving
from orchestrator.search.repetitions import SearchSize, TrialMaker, next_reference, next_repetition
from orchestrator.search.sampler import Sampler
from orchestrator.search.trial import Origin, RungResult, Trial, next_number


class TaskSearch:
    """The trials of one task, from the first suggestion to the confirmed finalists.

    Args:
        task: Name of the task.
        sampler: Suggests points.
        halving: Decides at the rungs.
        size: How much may be trained.
        make: Makes a trial.
        earlier: Trials of this search that exist, such as those before an interruption. Decisions about them are
            repeated, so that sampler and halving know them; those that have not ended go on from their last rung.

    Attributes:
        trials: All trials, by number.
    """

    def __init__(
        self,
        task: str,
        sampler: Sampler,
        halving: Halving,
        size: SearchSize,
        make: TrialMaker,
        earlier: Sequence[Trial] = (),
    ) -> None:
        self.task, self.size = task, size
        self.trials = sorted(earlier, key=lambda each: each.number)
        self._sampler, self._halving, self._make = sampler, halving, make
        self._waiting: list[Trial] = []
        self._exhausted = self._stopped = False
        for trial in self.trials:
            self._replay(trial)

    def stop(self) -> None:
        """Train nothing more, because a budget is used up; what is being trained goes on to its rung."""
        self._stopped = True

    def next(self) -> Trial | None:
        """Return the trial to train next, to ``next_rung``; None if there is none now.

        Trials that go on come before new ones, so that few weights are kept.
        """
        if self._stopped:
            return None
        trial: Trial | None = self._waiting.pop(0) if self._waiting else None
        trial = trial or self._sample() or next_repetition(self.trials, self.size, self._add)
        trial = trial or next_reference(self.trials, self.size, self._add)
        if trial:
            trial.state = "running"
        return trial

    def add_shared(self, point: Point) -> bool:
        """Add a trial of a point that is recommended for another task, unless this task has tried it to its end.

        Returns:
            Whether a trial was added. A point of a space that this task does not have is none for it.
        """
        if self._stopped or not self._sampler.is_valid(point):
            return False
        trial = self._make(next_number(self.trials), point, "shared", 0)
        tried = (each for each in self.trials if each.point_key == trial.point_key and each.seed == 0)
        if any(each.state in ("finished", "failed") for each in tried):
            return False
        self.trials.append(trial)
        self._waiting.append(trial)
        return True

    def next_rung(self, trial: Trial) -> int:
        """Return the steps up to which a trial is trained next."""
        return self._halving.next_rung(trial.steps) if trial.origin == "sampled" else self._halving.rungs[-1]

    def report(self, trial: Trial, result: RungResult, *, ended: bool) -> None:
        """Take the result of a trial at a rung, and decide whether it goes on.

        Args:
            trial: The trial.
            result: Its result.
            ended: Whether its training is complete.
        """
        trial.rungs.append(result)
        if ended:
            trial.state = "finished"
        elif self._halving.goes_on(trial, result):
            trial.state = "waiting"
            self._waiting.append(trial)
        else:
            trial.state = "stopped"
        self._learn(trial)

    def fail(self, trial: Trial, error: str) -> None:
        """Note that a trial has failed. Its point is not suggested again."""
        trial.state, trial.error = "failed", error

    def _learn(self, trial: Trial) -> None:
        if trial.has_ended and trial.seed == 0 and trial.origin != "reference":
            self._sampler.tell(trial)

    def _replay(self, trial: Trial) -> None:
        self._sampler.take(trial.spec_hash)
        if not trial.has_ended:
            trial.state = "waiting"
            self._waiting.append(trial)
        for result in trial.rungs if trial.origin == "sampled" else ():
            if result.steps in self._halving.rungs[:-1]:
                self._halving.goes_on(trial, result)
        self._learn(trial)

    def _sample(self) -> Trial | None:
        if self._exhausted or sum(trial.origin == "sampled" for trial in self.trials) >= self.size.trials:
            return None
        point = self._sampler.suggest(next_number(self.trials))
        self._exhausted = point is None
        return None if point is None else self._add(point, "sampled", 0)

    def _add(self, point: Point, origin: Origin, seed: int) -> Trial:
        trial = self._make(next_number(self.trials), point, origin, seed)
        self.trials.append(trial)
        return trial
