"""One expert in training: what to train, the state of the training, and its result."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.encoding import Tokens, collate, pool
from ttmoe.expert import Expert
from workers.stopwatch import activity_timer, current_stopwatch
from workers.training.batches import TokenizedRows, training_batches
from workers.training.checkpoints import Checkpoint, CheckpointFolder
from workers.training.engines.engine import SINGLE_PROCESS, Engine
from workers.training.engines.zero_optimizer import ZeroOptimizer
from workers.training.gradients import ExpertBatch, PassStats
from workers.training.optimizer import learning_rate_factor, load_optimizer
from workers.training.settings import TrainSettings

HEAD_SCALE_ROWS = 256  # training rows from which the head's input scale is measured
_last_states: WeakKeyDictionary[Bank, tuple[list[Tokens], Tensor]] = WeakKeyDictionary()


class DivergedError(RuntimeError):
    """The training loss is not finite."""


@dataclass(frozen=True)
class ExpertTraining:
    """An expert to train: its rows, settings and checkpoints.

    Attributes:
        name: Name of the expert in the bank.
        train: Training split.
        validation: Validation split; evaluations during the training use its first rows (``validation_rows``).
        settings: Training settings.
        head: ``trained`` or ``frozen``.
        checkpoints: Where to save checkpoints and resume from; None saves none.
        pause_at: Step at which to evaluate, save a checkpoint and end, so that a later call resumes there; None trains
            to the end. It must not be below the step of a checkpoint.
    """

    name: str
    train: TokenizedRows
    validation: TokenizedRows
    settings: TrainSettings
    head: str
    checkpoints: CheckpointFolder | None = None
    pause_at: int | None = None


@dataclass
class FitResult:
    """The result of a training.

    Attributes:
        best: Validation metrics of the best weights: until the end on the evaluation rows, then on all rows.
        best_step: Step of the best weights.
        steps: Optimizer steps taken.
        seconds: Training time over all attempts, evaluations included.
        tokens: Number of real and of processed (padded) training tokens.
    """

    best: dict[str, float]
    best_step: int
    steps: int
    seconds: float
    tokens: list[int]

    def metrics(self) -> dict[str, float]:
        """Return the metrics to record. ``tokens.per_second`` counts real tokens over the whole training time."""
        real, processed = self.tokens
        return {f"validation.{key}": value for key, value in self.best.items()} | {
            "steps": self.steps,
            "best_step": self.best_step,
            "seconds.training": self.seconds,
            "tokens.real_share": real / max(1, processed),
            "tokens.per_second": real / max(1e-9, self.seconds),
        }


class TrainingState:
    """The state of one expert's training: optimizer, position in the data, and best weights so far."""

    def __init__(
        self,
        bank: Bank,
        training: ExpertTraining,
        pad_id: int,
        checkpoint: Checkpoint | None,
        engine: Engine = SINGLE_PROCESS,
    ) -> None:
        """Start from the beginning, or resume from a checkpoint."""
        self.training, self.settings, self.engine = training, training.settings, engine
        self.validation = training.validation.first(self.settings.evaluation_rows(len(training.validation)))
        self.expert: Expert = bank.expert(training.name)
        trains_head = training.head == "trained" and self.expert.head.out_features > 0  # 0: the expert generates text
        self.expert.head.requires_grad_(trains_head)
        if self.expert.head.out_features == 1:  # all options share the bias: its gradient is nothing but rounding
            self.expert.head.bias.requires_grad_(False)
        self.expert.head.dropout = self.settings.head_dropout if trains_head else 0.0
        self.optimizer = engine.make_optimizer(self.expert, self.settings)
        self.result, self.evaluations_since_best = FitResult({}, 0, 0, 0.0, [0, 0]), 0
        self.best_weights: dict[str, Tensor] = {}
        if checkpoint is not None:
            self._restore(checkpoint)
        elif self.expert.head.out_features:
            with activity_timer("trunk", training.name):
                self.expert.head.fit_scale(_base_states(bank, training.train, pad_id))
        self._started = time.monotonic() - self.result.seconds
        settings = self.settings
        batches = training_batches(training.train, settings.batch_size, settings.seed or 0, settings.batch_tokens)
        self.batches = islice(batches, self.result.steps, None)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that are trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def depth(self) -> int:
        """Number of base layers in the trunk.

        Layers below the adapter belong to the trunk whether its states are stored or not: they run without gradients.
        """
        states = self.training.train.states
        return states.depth if states else self.expert.adapter.lowest_layer

    @property
    def is_finished(self) -> bool:
        """Whether all steps up to the pause are taken, or ``patience`` evaluations brought no improvement."""
        patience = self.settings.patience
        return self.result.steps >= self.last_step or bool(patience and self.evaluations_since_best >= patience)

    @property
    def last_step(self) -> int:
        """The step at which this call ends: the pause, or the last step of the settings."""
        return min(self.settings.steps, self.training.pause_at or self.settings.steps)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether to evaluate on the validation split after the last step."""
        return self.result.steps % self.settings.eval_every == 0 or self.result.steps == self.last_step

    @property
    def seconds_left(self) -> float:
        """Estimated seconds for the remaining steps."""
        return self.result.seconds / self.result.steps * (self.settings.steps - self.result.steps)

    def next_batch(self) -> ExpertBatch:
        """Reset the gradients and return the next batch."""
        self.zero_grad()
        training, settings, step = self.training, self.settings, self.result.steps
        rows = next(self.batches)
        return ExpertBatch(training.name, training.train, rows, settings.label_smoothing, settings.seed or 0, step)

    def zero_grad(self) -> None:
        """Reset the gradients. On a GPU they stay where they are, for graphs have their addresses."""
        self.optimizer.zero_grad(set_to_none=self.expert.head.weight.device.type == "cpu")

    def check_loss(self, loss: float, step: int) -> None:
        """Raise DivergedError if the loss of this step, counted from 1, is not finite."""
        if not math.isfinite(loss):
            name, lr = self.training.name, self.settings.lr
            raise DivergedError(f"the loss of {name!r} is {loss} at step {step}: lower train.lr (now {lr})")

    def rates(self) -> list[float]:
        """Return the learning rate of each group of parameters in the next step."""
        factor = learning_rate_factor(self.result.steps, self.settings)
        return [group["initial_lr"] * factor for group in self.optimizer.param_groups]

    def apply(self, rates: Sequence[float | Tensor]) -> None:
        """Take one optimizer step with the gradients already accumulated, at these learning rates."""
        groups = self.optimizer.param_groups
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        for group in groups:  # a tensor is this step's alone
            group["lr"] = group["initial_lr"]

    def advance(self, stats: PassStats) -> None:
        """Count a step that was taken.

        Args:
            stats: Statistics of the batch that gave the gradients.
        """
        self.result.steps += 1
        real, processed = self.result.tokens
        self.result.tokens = [real + stats.real_tokens, processed + stats.processed_tokens]
        self.update_seconds()

    def update_best(self, metrics: dict[str, float]) -> None:
        """Keep a copy of the weights if these validation metrics are the best so far."""
        self.evaluations_since_best += 1
        if not self.result.best or _is_better(metrics, self.result.best):
            self.result.best, self.result.best_step, self.evaluations_since_best = metrics, self.result.steps, 0
            self.best_weights = {key: value.clone() for key, value in self.expert.state_dict().items()}
        self.update_seconds()

    def update_seconds(self) -> None:
        """Update ``result.seconds``."""
        self.result.seconds = time.monotonic() - self._started

    def end(self) -> None:
        """Release what a divided optimizer holds; called once, when the training takes no more steps."""
        if isinstance(self.optimizer, ZeroOptimizer):
            self.optimizer.close()

    def finish(self) -> FitResult:
        """Load the best weights into the expert and return the result."""
        self.expert.load_state_dict(self.best_weights)
        self.optimizer.zero_grad()
        return self.result

    def save(self) -> None:
        """Save a checkpoint, if the training has a checkpoint folder; process 0 writes it."""
        folder, result = self.training.checkpoints, self.result
        if folder is None:
            return
        optimizer = self.optimizer.state_dict()  # of all processes
        if self.engine.rank == 0:
            folder.save(
                Checkpoint(
                    spec_hash=folder.spec_hash,
                    step=result.steps,
                    done=self.is_finished,
                    expert=dict(self.expert.state_dict()),
                    optimizer=optimizer,
                    best=result.best,
                    best_step=result.best_step,
                    best_expert=self.best_weights,
                    waited=self.evaluations_since_best,
                    seconds=result.seconds,
                    tokens=result.tokens,
                    activities=current_stopwatch().seconds(self.training.name),
                )
            )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.expert.load_state_dict(checkpoint.expert)
        load_optimizer(self.optimizer, checkpoint.optimizer)
        self.result = FitResult(
            checkpoint.best, checkpoint.best_step, checkpoint.step, checkpoint.seconds, checkpoint.tokens
        )
        self.best_weights, self.evaluations_since_best = checkpoint.best_expert, checkpoint.waited
        current_stopwatch().add(self.training.name, checkpoint.activities)


@torch.no_grad()
def _base_states(bank: Bank, rows: TokenizedRows, pad_id: int) -> Tensor:
    """Return pooled states (rows, width) of the first training rows, computed by the base without an expert.

    A bank's last states are kept: the trials of a search read the same rows.
    """
    tokens = [item.options[0] if item.options else item.whole for item in rows.items[:HEAD_SCALE_ROWS]]
    last_tokens, states = _last_states.get(bank, ([], None))
    if states is not None and last_tokens == tokens:
        return states
    parts = []
    for start in range(0, len(tokens), 64):
        inputs = collate(tokens[start : start + 64], pad_id, bank.device)
        parts.append(pool(bank.model(**inputs).last_hidden_state, inputs["attention_mask"], bank.pooling))
    _last_states[bank] = tokens, torch.cat(parts)
    return _last_states[bank][1]


def _is_better(new: dict[str, float], old: dict[str, float]) -> bool:
    return (new["accuracy"], -new["loss"]) > (old["accuracy"], -old["loss"])
