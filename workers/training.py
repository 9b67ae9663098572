"""The training loop of one expert on a frozen base."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from ttmoe.bank import Bank, Expert
from ttmoe.encoding import collate, pool
from ttmoe.scoring import score
from workers.batches import Rows, training_batches
from workers.evaluation import evaluate
from workers.progress import Progress, Report
from workers.settings import Train

SCALE_ROWS = 256  # rows that tell the head the scale of the base's states


class DivergedError(RuntimeError):
    """The loss is not a number any more; training on would only spend time."""


@dataclass
class Fit:
    """How a training went: the ``best`` validation metrics, the step they were met at, and the steps taken."""

    best: dict[str, float]
    best_step: int
    steps: int
    seconds: float


def fit(
    bank: Bank,
    name: str,
    train: Rows,
    validation: Rows,
    settings: Train,
    *,
    head: str,
    pad_id: int,
    report: Report,
) -> Fit:
    """Train expert ``name``; it is left with the weights that did best on ``validation``.

    Stops early after ``settings.patience`` evaluations without improvement. Raises DivergedError on a loss that is not
    finite.
    """
    expert: Expert = bank.experts[name]  # type: ignore[assignment]
    expert.head.requires_grad_(head == "trained")
    expert.head.dropout = settings.head_dropout if head == "trained" else 0.0
    expert.head.fit_scale(_bare_states(bank, train, pad_id))
    torch.manual_seed(settings.seed or 0)  # dropout draws from the global generator
    optimizer = _optimizer(expert, settings)
    schedule = LambdaLR(optimizer, lambda step: learning_rate(step, settings))
    batches = training_batches(train, settings.batch_size, settings.seed or 0)
    result, weights, waited, began = Fit({}, 0, 0, 0.0), {}, 0, time.monotonic()
    bank.train()
    for step, batch in enumerate(islice(batches, settings.steps), 1):
        loss = _step(bank, name, train, batch, settings, optimizer, pad_id)
        schedule.step()
        if not math.isfinite(loss):
            raise DivergedError(f"the loss of {name!r} is {loss} at step {step}: lower train.lr (now {settings.lr})")
        metrics = {"train.loss": loss}
        if step % settings.eval_every == 0 or step == settings.steps:
            found = evaluate(bank, name, validation, pad_id)
            metrics |= {f"validation.{key}": value for key, value in found.items()}
            waited += 1
            if not result.best or _better(found, result.best):
                result.best, result.best_step, waited = found, step, 0
                weights = {key: value.clone() for key, value in expert.state_dict().items()}
        result.steps, result.seconds = step, time.monotonic() - began
        report(Progress("training", step, settings.steps, metrics, result.seconds / step * (settings.steps - step)))
        if settings.patience and waited >= settings.patience:
            break
    expert.load_state_dict(weights)
    bank.eval()
    return result


@torch.no_grad()
def _bare_states(bank: Bank, rows: Rows, pad_id: int) -> Tensor:
    """Pooled states of the first training rows through the bare base."""
    tokens = [item.options[0] if item.options else item.whole for item in rows.items[:SCALE_ROWS]]
    parts = []
    for start in range(0, len(tokens), 64):
        inputs = collate(tokens[start : start + 64], pad_id, bank.device)
        parts.append(pool(bank.model(**inputs).last_hidden_state, inputs["attention_mask"], bank.pooling))
    return torch.cat(parts)


def learning_rate(step: int, settings: Train) -> float:
    """The share of the full learning rate at ``step`` (0 is the first): a linear rise, then the schedule's fall."""
    rise = max(1, round(settings.warmup * settings.steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, settings.steps - rise)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]


def expert_loss(scores: list[Tensor], labels: list[int], smoothing: float) -> Tensor:
    """Mean cross-entropy over rows that may have different numbers of options."""
    targets = torch.tensor(labels, device=scores[0].device)
    if len({len(s) for s in scores}) == 1:
        return F.cross_entropy(torch.stack(scores), targets, label_smoothing=smoothing)
    each = [F.cross_entropy(s, t, label_smoothing=smoothing) for s, t in zip(scores, targets, strict=True)]
    return torch.stack(each).mean()


def _better(new: dict[str, float], old: dict[str, float]) -> bool:
    return (new["accuracy"], -new["loss"]) > (old["accuracy"], -old["loss"])


def _optimizer(expert: Expert, settings: Train) -> torch.optim.AdamW:
    groups = [{"params": list(expert.adapter.parameters()), "lr": settings.lr}]
    if expert.head.weight.requires_grad:
        groups.append({"params": list(expert.head.parameters()), "lr": settings.head_lr})
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, foreach=True)


def _step(
    bank: Bank,
    name: str,
    rows: Rows,
    batch: list[int],
    settings: Train,
    optimizer: torch.optim.AdamW,
    pad_id: int,
) -> float:
    scores = score(bank, [rows.items[i] for i in batch], name, pad_id)
    loss = expert_loss(scores, [rows.labels[i] for i in batch], settings.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    if settings.clip:
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], settings.clip)
    optimizer.step()
    return loss.item()
