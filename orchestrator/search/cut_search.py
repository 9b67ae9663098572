"""The search of one task by cutting: one training at the highest rank gives a trial of every lower one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.plan.choosing import Point
from orchestrator.search.finalists import choose_finalists
from orchestrator.search.repetitions import SearchSize, TrialMaker, next_reference, next_repetition
from orchestrator.search.trial import Origin, RungResult, Trial, next_number
from workers.tuning.members import CuttingResult, Member


class CutSearch:
    """The trials of one task: the parent, its cuts, the ranks whose cut is doubtful, and repetitions of finalists.

    It has the methods of ``TaskSearch``.

    Args:
        task: Name of the task.
        ranks: The ranks; the highest is that of the parent.
        steps: Steps of a training.
        size: How much may be trained.
        make: Makes a trial.
        earlier: Trials of this search that exist, such as those before an interruption.

    Attributes:
        trials: All trials, by number.
    """

    def __init__(
        self,
        task: str,
        ranks: Sequence[int],
        steps: int,
        size: SearchSize,
        make: TrialMaker,
        earlier: Sequence[Trial] = (),
    ) -> None:
        self.task, self.size = task, size
        self.ranks = sorted(set(ranks), reverse=True)
        self.trials = sorted(earlier, key=lambda each: each.number)
        self._steps, self._make, self._stopped = steps, make, False
        self._waiting = [trial for trial in self.trials if not trial.has_ended]
        parent = self._parent
        if parent and parent.has_ended and len(self._cuts()) < len(self.ranks) - 1:
            parent.state = "waiting"  # its cuts were not recorded: they are made again from its files
            self._waiting.insert(0, parent)

    def stop(self) -> None:
        """Train nothing more, because a budget is used up."""
        self._stopped = True

    def next(self) -> Trial | None:
        """Return the trial to train next; None if there is none now."""
        if self._stopped:
            return None
        if self._waiting:
            trial: Trial | None = self._waiting.pop(0)
        elif self._parent is None:
            trial = self._add({"rank": self.ranks[0]}, "parent", 0)
        elif not self._parent.has_ended:
            return None
        else:
            trial = self._retrain() or next_repetition(self.trials, self.size, self._add)
            trial = trial or next_reference(self.trials, self.size, self._add)
        if trial:
            trial.state = "running"
        return trial

    def next_rung(self, trial: Trial) -> int:
        """Return the steps up to which a trial is trained: all."""
        return self._steps

    def report(self, trial: Trial, result: RungResult, *, ended: bool) -> None:
        """Take the result of a trial that was trained to its end."""
        trial.rungs.append(result)
        trial.state = "finished"

    def report_cuts(self, parent: Trial, result: CuttingResult) -> list[Trial]:
        """Take the parent's result and its cuts; return the trials of the cuts.

        Cuts that were recorded before an interruption keep their trials.
        """
        parent.rungs = [_rung(result.parent)]
        parent.state = "finished"
        known = {trial.point["rank"]: trial for trial in self._cuts()}
        cuts = []
        for member in result.members:
            trial = known.get(member.rank) or self._add({"rank": member.rank}, "cut", 0)
            trial.rungs = [_rung(member)]
            trial.state = "finished"
            cuts.append(trial)
        return cuts

    def fail(self, trial: Trial, error: str) -> None:
        """Note that a trial has failed."""
        trial.state, trial.error = "failed", error

    def doubtful(self) -> list[Trial]:
        """Return the cuts that are worse than their neighbours, the largest first.

        These are cuts that are less accurate than the next larger one by more than ``within``, and those that a smaller
        one surpasses: at their rank, a training may do better.
        """
        found = []
        whole = [self._parent] if self._parent else []
        line = sorted([*whole, *self._cuts()], key=lambda each: -each.parameters)
        for index, trial in enumerate(line[1:], 1):
            falls = trial.accuracy < line[index - 1].accuracy - self.size.within
            surpassed = any(smaller.accuracy > trial.accuracy for smaller in line[index + 1 :])
            if falls or surpassed:
                found.append(trial)
        return found

    def _retrain(self) -> Trial | None:
        """Return the trial of a rank whose cut is doubtful and that was not trained yet."""
        done = [trial.point_key for trial in self.trials if trial.origin == "retrained"]
        if len(done) >= self.size.trials:
            return None
        left = [trial for trial in self.doubtful() if trial.point_key not in done]
        return self._add(left[0].point, "retrained", 0) if left else None

    @property
    def _parent(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.origin == "parent"), None)

    def _cuts(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.origin == "cut"]

    def _add(self, point: Point, origin: Origin, seed: int) -> Trial:
        trial = self._make(next_number(self.trials), point, origin, seed)
        self.trials.append(trial)
        return trial


def promising_ranks(trials: Iterable[Trial]) -> tuple[int, ...]:
    """Return the ranks on the front of a parent and its cuts among these trials, the most accurate first."""
    cuts = [each for each in trials if each.origin in ("parent", "cut")]
    return tuple(each.trials[0].point["rank"] for each in choose_finalists(cuts, len(cuts), within=1.0))


def _rung(member: Member) -> RungResult:
    return RungResult(member.steps, member.accuracy, member.loss, member.seconds)
