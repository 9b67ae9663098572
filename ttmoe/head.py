"""The head of an expert: standardise pooled states, then apply one linear map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.row_dropout import dropout_by_row, keys_at
from ttmoe.transfer import constant_on, to_device


class Head(nn.Module):
    """A linear map from standardised pooled states (rows, width) to scores (rows, classes).

    Standardising makes the states of any base comparable, so that one learning rate fits them all; it does not change
    their directions.

    Attributes:
        weight: (classes, width), zero at the start.
        bias: (classes,), zero at the start.
        centre: Mean of the states, (width,).
        scale: Standard deviation of the states around ``centre``, one number.
        dropout: Dropout rate on the standardised states in training.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, width: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.dropout = dropout

    @property
    def out_features(self) -> int:
        """The number of scores, 0 for an expert that generates text."""
        return self.weight.shape[0]

    @torch.no_grad()
    def fit_scale(self, states: Tensor) -> None:
        """Set centre and scale from pooled states (rows, width) of training rows, computed by the bare base."""
        self.centre.copy_(states.mean(0))
        self.scale.copy_((states - self.centre).std().clamp(min=1e-6))

    def forward(self, states: Tensor, dropout_keys: Tensor | None = None) -> Tensor:
        """Map pooled states (rows, width) to scores (rows, classes). ``dropout_keys``: as in ``score_rows``."""
        standardised = (states - self.centre) / self.scale
        if self.training and self.dropout:
            standardised = _drop(standardised, self.dropout, dropout_keys)
        return F.linear(standardised, self.weight, self.bias)


def score_rows(states: Tensor, heads: Sequence[Head], index: Tensor, dropout_keys: Tensor | None = None) -> Tensor:
    """Score each row with its own head; the batched form of ``Head.forward``.

    Args:
        states: Pooled states (rows, width).
        heads: The heads in the batch.
        index: Index into ``heads`` for each row, (rows,).
        dropout_keys: Key of each row, (rows, 2); None draws at random.

    Returns:
        (rows, largest number of classes), -inf in the columns that a row's head does not have.
    """
    most = max(head.out_features for head in heads)
    weight = torch.stack([F.pad(h.weight, (0, 0, 0, most - h.out_features)) for h in heads])
    bias = torch.stack([F.pad(h.bias, (0, most - h.out_features), value=float("-inf")) for h in heads])
    standardised = _standardise_rows(states, heads, index, dropout_keys)
    return torch.bmm(weight[index], standardised.unsqueeze(-1)).squeeze(-1) + bias[index]


def _standardise_rows(states: Tensor, heads: Sequence[Head], index: Tensor, dropout_keys: Tensor | None) -> Tensor:
    """Standardise each row with its own head, with dropout in training."""
    centre, scale = (torch.stack([getattr(head, name) for head in heads])[index] for name in ("centre", "scale"))
    standardised = (states - centre) / scale.unsqueeze(-1)
    rates = [head.dropout if head.training else 0.0 for head in heads]
    if not any(rates):
        return standardised
    return _drop(standardised, constant_on(states.device, tuple(rates), torch.float64)[index], dropout_keys)


def _drop(states: Tensor, rates: Tensor | float, dropout_keys: Tensor | None) -> Tensor:
    keys = None if dropout_keys is None else keys_at(["head"], to_device(dropout_keys, states.device))[0]
    return dropout_by_row(states, rates, keys)
