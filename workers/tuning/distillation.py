"""Short training of a cut expert towards the answers of the expert that it was cut from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.bank import Bank
from ttmoe.scoring import score
from workers.training.batches import TokenizedRows
from workers.training.optimizer import learning_rate_factor, make_optimizer
from workers.training.settings import TrainSettings
from workers.tuning.passes import split_for_gradients, trunk_depth

_LEAST_LOSS = 1e-6  # of a teacher; below, every rise counts as large


def most_distillation_steps(steps: int) -> int:
    """Return the most steps of a distillation: a quarter of those of the training."""
    return max(1, steps // 4)


def distillation_steps(most: int, teacher_loss: float, loss: float) -> int:
    """Return the steps of a distillation: the more the cut has lost, the more.

    They are ``most`` if the cut has doubled the validation loss, and fall with the root of the rise. Where they would
    be less than a fifth of it, there is none: so few steps are little more than the warm-up.

    Args:
        most: Most steps.
        teacher_loss: Validation loss of the expert that was cut.
        loss: Validation loss of the cut.
    """
    rise = max(0.0, loss - teacher_loss) / max(teacher_loss, _LEAST_LOSS)
    steps = round(most * min(1.0, rise**0.5))
    return steps if steps >= most / 5 else 0


def distillation_settings(settings: TrainSettings, teacher_rank: int, rank: int, steps: int) -> TrainSettings:
    """Return the settings of a distillation from those of the teacher's training.

    The learning rate is half of the teacher's, and falls with the root of the rank.
    """
    rate = 0.5 * settings.lr * (teacher_rank / rank) ** 0.5
    return settings.model_copy(update={"steps": steps, "lr": rate})


@torch.no_grad()
def teacher_answers(
    bank: Bank, teacher: str, rows: TokenizedRows, batches: Sequence[Sequence[int]], pad_id: int
) -> dict[int, Tensor]:
    """Return the teacher's scores of every row in these batches, by row number."""
    answers: dict[int, Tensor] = {}
    for batch in batches:
        answers |= zip(batch, _scores(bank, teacher, rows, batch, pad_id), strict=True)
    return answers


def distil(
    bank: Bank,
    student: str,
    rows: TokenizedRows,
    batches: Sequence[list[int]],
    answers: dict[int, Tensor],
    settings: TrainSettings,
    pad_id: int,
    on_step: Callable[[], None],
) -> None:
    """Train an expert towards given answers, one step for each batch, without dropout and without labels.

    Args:
        bank: Bank that holds the expert, in eval mode.
        student: The expert. Its head is trained if its parameters require gradients.
        rows: The training split.
        batches: Row numbers of each step.
        answers: Scores of these rows, as ``teacher_answers`` returns them.
        settings: Settings of the optimizer; ``steps`` is the number of batches.
        pad_id: Token id used for padding.
        on_step: Called after each step; may raise to end the training.
    """
    optimizer = make_optimizer(bank.expert(student), settings)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        for numbers in split_for_gradients(rows, batch, settings):
            scores = _scores(bank, student, rows, numbers, pad_id)
            losses = [_loss(own, answers[row]) for own, row in zip(scores, numbers, strict=True)]
            (torch.stack(losses).sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(step, settings)
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        on_step()
    optimizer.zero_grad()


def _scores(bank: Bank, name: str, rows: TokenizedRows, numbers: Sequence[int], pad_id: int) -> list[Tensor]:
    items, states = [rows.items[row] for row in numbers], rows.gather_states(numbers, bank.device)
    return score(bank, items, name, pad_id, states=states, depth=trunk_depth(bank, name, rows))


def _loss(scores: Tensor, answer: Tensor) -> Tensor:
    """Return how far a row's scores are from its teacher's.

    The cross-entropy of classes or options; for an answer's tokens, of which only the own log-probabilities are known,
    their mean squared difference.
    """
    if scores.ndim == 2:
        return (scores[:, 0] - answer[:, 0]).square().mean()
    return F.cross_entropy(scores, answer.softmax(0))
