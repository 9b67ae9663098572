"""The training loss of one expert's rows in a batch."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.scoring import BatchScores
from ttmoe.transfer import tensor_on


def expert_loss(scores: BatchScores, targets: Tensor, label_smoothing: float) -> Tensor:
    """Return the mean over rows of one expert of their cross-entropy, or of its mean over a row's answer tokens.

    Args:
        scores: Scores of the rows.
        targets: Right class or option of each row, (rows,).
        label_smoothing: Share of a label spread over the other classes or options. Answer tokens are not smoothed: that
            would require the logits of the whole vocabulary.
    """
    outputs, device = scores.outputs[0], scores.heads.device
    if not outputs:
        weights = [1 / length / len(targets) for length in scores.answer_lengths for _ in range(length)]
        return -(scores.answers[:, 0] * tensor_on(device, weights)).sum()
    if outputs > 1:
        return F.cross_entropy(scores.heads[:, :outputs], targets, label_smoothing=label_smoothing)
    return _option_loss(scores.heads[:, 0], scores.sequences, targets, label_smoothing)


def _option_loss(scores: Tensor, options: list[int], targets: Tensor, label_smoothing: float) -> Tensor:
    """Return the mean cross-entropy of rows with these numbers of options; ``scores`` has all options of all rows."""
    most = max(options)
    if min(options) == most:
        return F.cross_entropy(scores.view(-1, most), targets, label_smoothing=label_smoothing)
    firsts = accumulate(options, initial=0)
    # Of shorter rows, the last option stands in the columns that they lack.
    indexes = [[first + min(i, count - 1) for i in range(most)] for first, count in zip(firsts, options, strict=False)]
    lacks = tensor_on(scores.device, [[i >= count for i in range(most)] for count in options])
    logs = scores[tensor_on(scores.device, indexes)].masked_fill(lacks, -torch.inf).log_softmax(1)
    right = logs.gather(1, targets.unsqueeze(1)).squeeze(1)
    spread = logs.masked_fill(lacks, 0.0).sum(1) / tensor_on(scores.device, options)
    return -((1 - label_smoothing) * right + label_smoothing * spread).mean()
