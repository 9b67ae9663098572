"""One expert in training: its rows and settings, and how far it has come."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.encoding import collate, pool
from ttmoe.expert import Expert
from workers.training.batches import TokenizedRows, training_batches
from workers.training.checkpoints import Checkpoint, CheckpointFolder
from workers.training.gradients import ExpertBatch, PassStats
from workers.training.settings import TrainSettings

HEAD_SCALE_ROWS = 256  # rows that tell the head the scale of the base's states


class DivergedError(RuntimeError):
    """The loss is not a number any more; training on would only spend time."""


@dataclass(frozen=True)
class ExpertTraining:
    """An expert of the bank, by name, and how it is to be trained. ``head`` is ``trained`` or ``frozen``.

    With ``checkpoints`` it goes on from where it was stopped.
    """

    name: str
    train: TokenizedRows
    validation: TokenizedRows
    settings: TrainSettings
    head: str
    checkpoints: CheckpointFolder | None = None


@dataclass
class FitResult:
    """How a training went: the ``best`` validation metrics, the step they were met at, and the steps taken.

    ``seconds`` are those of all its attempts; ``tokens`` counts the real and the processed (padded) tokens.
    """

    best: dict[str, float]
    best_step: int
    steps: int
    seconds: float
    tokens: list[int]

    def metrics(self) -> dict[str, float]:
        """What is recorded of it. Tokens per second are real ones, over steps and evaluations on the way."""
        real, processed = self.tokens
        return {f"validation.{key}": value for key, value in self.best.items()} | {
            "steps": self.steps,
            "best_step": self.best_step,
            "seconds.training": self.seconds,
            "tokens.real_share": real / max(1, processed),
            "tokens.per_second": real / max(1e-9, self.seconds),
        }


class TrainingState:
    """A trainee on its way: optimizer, position in the data, and the best weights so far."""

    def __init__(self, bank: Bank, trainee: ExpertTraining, pad_id: int, checkpoint: Checkpoint | None) -> None:
        """Start, or go on from a checkpoint. Raises ValueError for a trainee without rows."""
        self.trainee, self.settings = trainee, trainee.settings
        self.expert: Expert = bank.expert(trainee.name)
        trains_head = trainee.head == "trained" and self.expert.head.out_features > 0  # there is none where it writes
        self.expert.head.requires_grad_(trains_head)
        self.expert.head.dropout = self.settings.head_dropout if trains_head else 0.0
        self.optimizer = _optimizer(self.expert, self.settings)
        self.fit, self.waited = FitResult({}, 0, 0, 0.0, [0, 0]), 0
        self.best_expert: dict[str, Tensor] = {}
        if checkpoint is not None:
            self._restore(checkpoint)
        elif self.expert.head.out_features:
            self.expert.head.fit_scale(_bare_states(bank, trainee.train, pad_id))
        self.began = time.monotonic() - self.fit.seconds
        settings = self.settings
        batches = training_batches(trainee.train, settings.batch_size, settings.seed or 0, settings.batch_tokens)
        self.batches = islice(batches, self.fit.steps, None)

    @property
    def depth(self) -> int:
        """Where the trunk ends under its rows. What is below the adapter is trunk, whether its states are kept or not:
        without gradients, and without the base's dropout.
        """
        states = self.trainee.train.states
        return states.depth if states else self.expert.adapter.lowest

    @property
    def ended(self) -> bool:
        """Whether it has taken all its steps, or has waited for an improvement long enough."""
        patience = self.settings.patience
        return self.fit.steps >= self.settings.steps or bool(patience and self.waited >= patience)

    @property
    def evaluates(self) -> bool:
        """Whether the validation split is due after the step that was taken."""
        return self.fit.steps % self.settings.eval_every == 0 or self.fit.steps == self.settings.steps

    @property
    def left(self) -> float:
        """The seconds that the remaining steps may take."""
        return self.fit.seconds / self.fit.steps * (self.settings.steps - self.fit.steps)

    def next_share(self) -> ExpertBatch:
        """The next batch, with no gradients from the last."""
        self.optimizer.zero_grad()
        return ExpertBatch(self.trainee.name, self.trainee.train, next(self.batches), self.settings.label_smoothing)

    def step(self, passed: PassStats) -> None:
        """Take the step whose gradients are there. Raises DivergedError on a loss that is not finite."""
        settings, step = self.settings, self.fit.steps
        if not math.isfinite(passed.loss):
            raise DivergedError(
                f"the loss of {self.trainee.name!r} is {passed.loss} at step {step + 1}: "
                f"lower train.lr (now {settings.lr})"
            )
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] = group["initial_lr"] * learning_rate(step, settings)
        if settings.clip:
            torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], settings.clip)
        self.optimizer.step()
        self.fit.steps += 1
        self.fit.tokens = [self.fit.tokens[0] + passed.real, self.fit.tokens[1] + passed.processed]
        self.tick()

    def judge(self, found: dict[str, float]) -> None:
        """Keep the weights if they did best on the validation split."""
        self.waited += 1
        if not self.fit.best or _better(found, self.fit.best):
            self.fit.best, self.fit.best_step, self.waited = found, self.fit.steps, 0
            self.best_expert = {key: value.clone() for key, value in self.expert.state_dict().items()}
        self.tick()

    def tick(self) -> None:
        """Bring the seconds up to date."""
        self.fit.seconds = time.monotonic() - self.began

    def finish(self) -> FitResult:
        """Leave the expert with its best weights."""
        self.expert.load_state_dict(self.best_expert)
        self.optimizer.zero_grad()
        return self.fit

    def save(self, random: dict[str, Tensor]) -> None:
        """Write a checkpoint, if it has a folder for them."""
        folder, fit = self.trainee.checkpoints, self.fit
        if folder:
            expert, optimizer = self.expert.state_dict(), self.optimizer.state_dict()
            folder.save(Checkpoint(folder.spec_hash, fit.steps, self.ended, dict(expert), optimizer, random, fit.best,
                                   fit.best_step, self.best_expert, self.waited, fit.seconds, fit.tokens))  # fmt: skip

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.expert.load_state_dict(checkpoint.expert)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        best, seconds = checkpoint.best, checkpoint.seconds
        self.fit = FitResult(best, checkpoint.best_step, checkpoint.step, seconds, checkpoint.tokens)
        self.best_expert, self.waited = checkpoint.best_expert, checkpoint.waited


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The share of the full learning rate at ``step`` (0 is the first): a linear rise, then the schedule's fall."""
    rise = max(1, round(settings.warmup * settings.steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, settings.steps - rise)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]


@torch.no_grad()
def _bare_states(bank: Bank, rows: TokenizedRows, pad_id: int) -> Tensor:
    """Pooled states of the first training rows through the bare base."""
    tokens = [item.options[0] if item.options else item.whole for item in rows.items[:HEAD_SCALE_ROWS]]
    parts = []
    for start in range(0, len(tokens), 64):
        inputs = collate(tokens[start : start + 64], pad_id, bank.device)
        parts.append(pool(bank.model(**inputs).last_hidden_state, inputs["attention_mask"], bank.pooling))
    return torch.cat(parts)


def _better(new: dict[str, float], old: dict[str, float]) -> bool:
    return (new["accuracy"], -new["loss"]) > (old["accuracy"], -old["loss"])


def _optimizer(expert: Expert, settings: TrainSettings) -> torch.optim.AdamW:
    groups = [{"params": list(expert.adapter.parameters()), "lr": settings.lr, "initial_lr": settings.lr}]
    if expert.head.weight.requires_grad:
        groups.append({"params": list(expert.head.parameters()), "lr": settings.head_lr,
                       "initial_lr": settings.head_lr})  # fmt: skip
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, foreach=True)
