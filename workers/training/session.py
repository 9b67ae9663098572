"""The training loop: experts that train together on a frozen base, step by step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby

from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.transfer import tensor_on
from workers.failure import Failure, to_failure
from workers.progress import Progress, ProgressCallback
from workers.stopwatch import activity_timer
from workers.training.batches import TokenizedRows
from workers.training.checkpoints import Checkpoint, common_checkpoints
from workers.training.engines.engine import SINGLE_PROCESS, Engine, sum_gradients
from workers.training.evaluation import evaluate
from workers.training.gradients import ExpertBatch, PassStats, add_gradients
from workers.training.graphs import Tensors, make_graphs
from workers.training.losses import LossReader, steps_behind
from workers.training.state import DivergedError, ExpertTraining, FitResult, TrainingState

CHECKPOINT_SECONDS = 30.0  # the most training time that a crash loses, besides the steps since the last evaluation
CHECKPOINT_AT_END_SECONDS = 1.0  # the training time from which it is saved once more when all have ended
_LOG = logging.getLogger("ttmoe")


class TrainingSession:
    """Experts that train together: the active ones, and the outcomes of the others.

    ``start`` it, set the bank to training mode, and call ``step`` while there are active ones.

    Args:
        bank: As ``fit_experts`` takes it; so are ``pad_id`` and ``report``.
        pad_id: Token id used for padding.
        report: Receives the progress of each expert.
        engine: As ``fit_experts`` takes it.
    """

    def __init__(self, bank: Bank, pad_id: int, report: ProgressCallback, engine: Engine = SINGLE_PROCESS) -> None:
        self.bank, self.pad_id, self.report, self.engine = bank, pad_id, report, engine
        self.active: list[TrainingState] = []
        self.outcomes: dict[str, FitResult | Failure] = {}
        self.last_save = time.monotonic()
        self.graphs = make_graphs(bank.model, bank.device) if engine.records_graphs else None
        self.losses: LossReader[tuple[TrainingState, int]] = LossReader(bank.device)
        self.unreported: dict[tuple[TrainingState, int], float] = {}

    def start(self, trainings: Sequence[ExpertTraining]) -> None:
        """Start every training, or resume all of them from checkpoints they have in common."""
        checkpoints = self.engine.from_first(
            lambda: common_checkpoints([_matching_checkpoints(self.bank, training) for training in trainings])
        )
        if any(training.settings.recomputes for training in trainings):
            self.graphs = None  # layers that are recomputed cannot be recorded
        for training, checkpoint in zip(trainings, checkpoints, strict=True):
            try:
                self.active.append(TrainingState(self.bank, training, self.pad_id, checkpoint, self.engine))
            except Exception as error:
                if self.engine.size > 1:
                    raise
                self.outcomes[training.name] = to_failure(error)
        if len(trainings) > 1 and not any(checkpoints):
            self.save()  # a crash during the first real save then finds these common checkpoints
        self._finish_trainings()

    def step(self) -> None:
        """Take one step of every active training; evaluate and save checkpoints where they are due."""
        batches: dict[TrainingState, ExpertBatch] = {}
        for state in list(self.active):
            with self._errors_of(state):
                batches[state] = state.next_batch()
        stats: dict[TrainingState, PassStats] = {}
        for group in _groups(self.active):
            with activity_timer("steps", *_names(group)):
                stats |= self._backward({state: batches[state] for state in group})
        if self.engine.size > 1:
            with activity_timer("steps", *_names(self.active)):
                parameters = [parameter for state in self.active for parameter in state.parameters]
                sum_gradients(self.engine, parameters, [stats[state].loss for state in self.active])
        self.losses.add({(state, state.result.steps + 1): stats[state].loss for state in self.active})
        with activity_timer("steps", *_names(self.active)):  # on a GPU, this is where the host waits for it
            self._read_losses(steps_behind(self.bank.device))
        self._update(stats)
        evaluations = self._evaluate()
        self._report_losses(evaluations)
        if self._save_is_due(bool(evaluations)):
            self.save()
        self._finish_trainings()

    def _update(self, stats: Mapping[TrainingState, PassStats]) -> None:
        """Take the optimizer steps of all active trainings."""
        if not self.graphs:
            for state in list(self.active):
                with self._errors_of(state), activity_timer("steps", state.training.name):
                    state.apply(state.rates())
                    state.advance(stats[state])
            return
        states = list(self.active)
        counts = [len(state.rates()) for state in states]

        def apply(tensors: Tensors) -> list[Tensor]:
            for state, rates in zip(states, tensors["rates"].split(counts), strict=True):
                state.apply(rates.unbind())
            return []

        with activity_timer("steps", *_names(states)):
            if states:
                rates = tensor_on(self.bank.device, [rate for state in states for rate in state.rates()])
                self.graphs.run(("update", *map(id, states)), {"rates": rates}, apply)
            for state in states:
                state.advance(stats[state])

    def _read_losses(self, behind: int) -> None:
        """Read the losses of all steps but the last ``behind``. Trainings whose loss is not finite fail."""
        for (state, step), loss in self.losses.read(behind).items():
            if state in self.active:
                with self._errors_of(state):
                    state.check_loss(loss, step)
                    self.unreported[state, step] = loss

    def _report_losses(self, evaluations: dict[TrainingState, dict[str, float]]) -> None:
        """Report the losses that were read, each with its step, and this step's evaluations."""
        for (state, step), loss in self.unreported.items():
            of_this_step = evaluations.get(state, {}) if step == state.result.steps else {}
            self._report(state, {"train.loss": loss, **of_this_step}, step)
        self.unreported.clear()

    def _backward(self, batches: dict[TrainingState, ExpertBatch]) -> dict[TrainingState, PassStats]:
        """Compute gradients of a mixed batch; if that fails, repeat it expert by expert to find the faulty ones."""
        states = list(batches)
        sizes = [state.settings.rows_at_once for state in states if state.settings.rows_at_once]
        try:
            stats = add_gradients(self.bank, list(batches.values()), self.pad_id, depth=states[0].depth,
                                  micro_batch=min(sizes, default=None), graphs=self.graphs,
                                  engine=self.engine)  # fmt: skip
            return dict(zip(states, stats, strict=True))
        except Exception as error:
            if to_failure(error).kind != "code" or self.engine.size > 1:
                raise
            if len(states) == 1:
                self._fail(states[0], error)
                return {}
        separate: dict[TrainingState, PassStats] = {}
        for state in states:
            state.zero_grad()
            separate |= self._backward({state: batches[state]})
        return separate

    def _evaluate(self) -> dict[TrainingState, dict[str, float]]:
        """Return the validation metrics of every training whose evaluation is due."""
        if any(state.evaluation_is_due for state in self.active):
            self._read_losses(0)  # weights after a loss that is not finite must not become the best
        evaluations = {}
        for state in [state for state in self.active if state.evaluation_is_due]:
            with self._errors_of(state):
                metrics = self._measure(state, state.validation)
                state.update_best(metrics)
                evaluations[state] = {f"validation.{key}": value for key, value in metrics.items()}
        return evaluations

    def _measure(self, state: TrainingState, rows: TokenizedRows) -> dict[str, float]:
        name = state.training.name
        with activity_timer("evaluation", name):
            beat = partial(self._report, state, {}, state.result.steps)
            return evaluate(self.bank, name, rows, self.pad_id, beat, self.engine)

    def _report(self, state: TrainingState, metrics: dict[str, float], step: int) -> None:
        total = state.settings.steps
        self.report(Progress("training", step, total, metrics, state.seconds_left, state.training.name))

    def _save_is_due(self, evaluated: bool) -> bool:
        unsaved = time.monotonic() - self.last_save
        # After the last step of all, the result files soon replace the checkpoints.
        saves_at_evaluation = unsaved >= CHECKPOINT_AT_END_SECONDS or not all(s.is_finished for s in self.active)
        due = unsaved >= CHECKPOINT_SECONDS or (evaluated and saves_at_evaluation)
        (agreed,) = self.engine.any([due and self.engine.rank == 0])  # clocks differ
        return agreed

    def save(self) -> None:
        """Save all trainings at the same step, so that all can resume from it together."""
        self._read_losses(0)
        self._report_losses({})  # a training that resumes here does not take the steps before again
        for state in self.active:
            state.update_seconds()
            with activity_timer("saving", state.training.name):
                state.save()
        self.last_save = time.monotonic()

    def end(self) -> None:
        """Release what the optimizers of trainings hold that were stopped; called once."""
        for state in self.active:
            state.end()

    def _finish_trainings(self) -> None:
        for state in [state for state in self.active if state.is_finished]:
            with self._errors_of(state):
                if state.last_step < state.settings.steps:
                    state.save()  # a later call resumes from the pause
                result = state.finish()
                if len(state.validation) < len(state.training.validation):
                    result.best = self._measure(state, state.training.validation)
                    state.update_seconds()
                self.active.remove(state)
                state.end()
                self.outcomes[state.training.name] = result

    @contextmanager
    def _errors_of(self, state: TrainingState) -> Iterator[None]:
        """Treat an error in this context as a failure of this training alone.

        Of several processes, the others would wait for one that goes on without this training. A loss that is not
        finite is the same in all of them.
        """
        try:
            yield
        except Exception as error:
            if self.engine.size > 1 and not isinstance(error, DivergedError):
                raise
            self._fail(state, error)

    def _fail(self, state: TrainingState, error: Exception) -> None:
        self.outcomes[state.training.name] = to_failure(error)
        self.active.remove(state)
        state.end()


def _names(states: Sequence[TrainingState]) -> list[str]:
    return [state.training.name for state in states]


def _groups(states: Sequence[TrainingState]) -> list[list[TrainingState]]:
    """Group trainings that can share a pass: the same trunk depth, and trunk states stored for all or for none."""

    def trunk(state: TrainingState) -> tuple[int, bool]:
        return state.depth, state.training.train.states is not None

    return [list(group) for _, group in groupby(sorted(states, key=trunk), key=trunk)]


def _matching_checkpoints(bank: Bank, training: ExpertTraining) -> list[Checkpoint]:
    """Load the checkpoints whose tensors fit the expert; other code may have saved others for the same spec."""
    if training.checkpoints is None:
        return []
    shapes = {key: value.shape for key, value in bank.expert(training.name).state_dict().items()}
    checkpoints = training.checkpoints.load()
    matching = [c for c in checkpoints if {key: value.shape for key, value in c.expert.items()} == shapes]
    if len(matching) < len(checkpoints):
        count = len(checkpoints) - len(matching)
        _LOG.warning("Ignored %d checkpoint(s) of %s: their tensors do not fit the expert", count, training.name)
    return matching
