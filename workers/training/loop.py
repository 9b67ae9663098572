"""The training loop: one expert or several at once on a frozen base, each with its own optimizer, data and end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from ttmoe.bank import Bank
from workers.failure import Failure, to_failure
from workers.progress import Progress, ProgressCallback
from workers.training.checkpoints import Checkpoint, common_checkpoints
from workers.training.evaluation import evaluate
from workers.training.gradients import ExpertBatch, PassStats, activation_checkpointing, add_gradients
from workers.training.memory_limit import MemoryLimit
from workers.training.state import ExpertTraining, FitResult, TrainingState

CHECKPOINT_SECONDS = 30.0  # what a crash may cost, at most, beside the steps since the last evaluation
_LOG = logging.getLogger("ttmoe")


class TrainingFailedError(RuntimeError):
    """A training that others had no part in has failed: ``failure`` says how."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(str(failure))


def fit_experts(
    bank: Bank,
    trainees: Sequence[ExpertTraining],
    *,
    pad_id: int,
    report: ProgressCallback,
    allowance: MemoryLimit | None = None,
) -> dict[str, FitResult | Failure]:
    """Train the experts of this name in the bank; each is left with the weights that did best on its validation rows.

    One stops early after its ``patience`` evaluations without improvement. One that fails by its own fault (its data,
    a loss that is not finite) drops out, and the others go on; what goes wrong around them all is raised. Reports are
    each expert's own, under its name. Experts of different trunks share a process, not a pass. ``allowance`` bounds the
    memory that the process keeps for nothing.
    """
    session = _Session(bank, pad_id, report)
    bank.eval()
    session.open(trainees)
    with activation_checkpointing(bank.model, any(trainee.settings.checkpointing for trainee in trainees)):
        bank.train()
        try:
            while session.active:
                session.step()
                if allowance:
                    allowance.after_step()
        finally:
            bank.eval()
    return {trainee.name: session.outcomes[trainee.name] for trainee in trainees}


def fit_expert(bank: Bank, trainee: ExpertTraining, *, pad_id: int, report: ProgressCallback) -> FitResult:
    """The same for one expert alone. Raises TrainingFailedError."""
    found = fit_experts(bank, [trainee], pad_id=pad_id, report=report)[trainee.name]
    if isinstance(found, Failure):
        raise TrainingFailedError(found)
    return found


class _Session:
    """The experts that are in training together, and what has come of the others."""

    def __init__(self, bank: Bank, pad_id: int, report: ProgressCallback) -> None:
        self.bank, self.pad_id, self.report = bank, pad_id, report
        self.active: list[TrainingState] = []
        self.outcomes: dict[str, FitResult | Failure] = {}
        self.saved = time.monotonic()

    def open(self, trainees: Sequence[ExpertTraining]) -> None:
        """Set every course to its start, or all to one moment that their checkpoints have in common."""
        torch.manual_seed(trainees[0].settings.seed or 0)  # dropout draws from the global generator
        found = [_usable(self.bank, trainee) for trainee in trainees]
        points = common_checkpoints(found)
        for trainee, point in zip(trainees, points, strict=True):
            try:
                self.active.append(TrainingState(self.bank, trainee, self.pad_id, point))
            except Exception as error:
                self.outcomes[trainee.name] = to_failure(error)
        going_on = [point for point in points if point and not point.done]
        if going_on:
            _set_random(going_on[0].random, self.bank.device)
        elif len(trainees) > 1 and not any(points):
            self._save()  # so that a crash amid their first real save finds a moment in common: this one
        self._retire()

    def step(self) -> None:
        """One step of every expert, what is to be measured after it, and checkpoints where they are due."""
        shares: dict[TrainingState, ExpertBatch] = {}
        for course in list(self.active):
            with self._own(course):
                shares[course] = course.next_share()
        passed: dict[TrainingState, PassStats] = {}
        for group in _groups(self.active):
            passed |= self._backward({course: shares[course] for course in group})
        for course in list(self.active):
            with self._own(course):
                course.step(passed[course])
        measured = self._measure()
        for course in self.active:
            self._report(course, {"train.loss": passed[course].loss, **measured.get(course, {})})
        if measured or time.monotonic() - self.saved >= CHECKPOINT_SECONDS:
            self._save()
        self._retire()

    def _backward(self, shares: dict[TrainingState, ExpertBatch]) -> dict[TrainingState, PassStats]:
        """Gradients of a mixed batch. Where it cannot be computed, each is tried alone, to tell whose fault it is."""
        courses = list(shares)
        sizes = [course.settings.micro_batch for course in courses if course.settings.micro_batch]
        try:
            found = add_gradients(self.bank, list(shares.values()), self.pad_id, depth=courses[0].depth,
                                  at_once=min(sizes, default=None))  # fmt: skip
            return dict(zip(courses, found, strict=True))
        except Exception as error:
            if to_failure(error).kind != "code":
                raise
            if len(courses) == 1:
                self._drop(courses[0], error)
                return {}
        found_alone: dict[TrainingState, PassStats] = {}
        for course in courses:
            course.optimizer.zero_grad()
            found_alone |= self._backward({course: shares[course]})
        return found_alone

    def _measure(self) -> dict[TrainingState, dict[str, float]]:
        """The validation metrics of those whose turn it is."""
        measured = {}
        for course in [course for course in self.active if course.evaluates]:
            with self._own(course):
                name, rows, pulse = course.trainee.name, course.trainee.validation, partial(self._report, course, {})
                found = evaluate(self.bank, name, rows, self.pad_id, pulse)
                course.judge(found)
                measured[course] = {f"validation.{key}": value for key, value in found.items()}
        return measured

    def _report(self, course: TrainingState, metrics: dict[str, float]) -> None:
        steps = course.settings.steps
        self.report(Progress("training", course.fit.steps, steps, metrics, course.left, course.trainee.name))

    def _save(self) -> None:
        """All at once: where each stands then is one moment, from which all can go on together."""
        random = _random(self.bank.device)
        for course in self.active:
            course.tick()
            course.save(random)
        self.saved = time.monotonic()

    def _retire(self) -> None:
        for course in [course for course in self.active if course.ended]:
            self.active.remove(course)
            self.outcomes[course.trainee.name] = course.finish()

    @contextmanager
    def _own(self, course: TrainingState) -> Iterator[None]:
        """An error in here is this expert's own."""
        try:
            yield
        except Exception as error:
            self._drop(course, error)

    def _drop(self, course: TrainingState, error: Exception) -> None:
        self.outcomes[course.trainee.name] = to_failure(error)
        self.active.remove(course)


def _groups(courses: Sequence[TrainingState]) -> list[list[TrainingState]]:
    """Those that can share a pass: over one trunk, all with states that are kept or all without."""

    def trunk(course: TrainingState) -> tuple[int, bool]:
        return course.depth, course.trainee.train.states is not None

    return [list(group) for _, group in groupby(sorted(courses, key=trunk), key=trunk)]


def _usable(bank: Bank, trainee: ExpertTraining) -> list[Checkpoint]:
    """The checkpoints that fit the expert; other code may have written others under the same spec."""
    if trainee.checkpoints is None:
        return []
    mine = {key: value.shape for key, value in bank.expert(trainee.name).state_dict().items()}
    found = trainee.checkpoints.found()
    usable = [c for c in found if {key: value.shape for key, value in c.expert.items()} == mine]
    if len(usable) < len(found):
        _LOG.warning("checkpoints passed over: %d of %s do not fit it", len(found) - len(usable), trainee.name)
    return usable


def _random(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
