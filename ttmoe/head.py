"""The head: one linear map from pooled states to scores, on standardised states while it is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.row_dropout import drop_rows


class Head(nn.Module):
    """Scores (rows, classes) from pooled states (rows, width).

    ``centre`` (width,) and ``scale`` (one number) make the states of any base comparable, so that one learning rate
    fits them all; the states' directions stay as they are. ``dropout`` acts on the standardised states in training.
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
        """The number of scores."""
        return self.weight.shape[0]

    @torch.no_grad()
    def fit_scale(self, states: Tensor) -> None:
        """Take centre and scale from pooled states (rows, width) of training rows through the bare base."""
        self.centre.copy_(states.mean(0))
        self.scale.copy_((states - self.centre).std().clamp(min=1e-6))

    def forward(self, states: Tensor) -> Tensor:
        """States (rows, width) -> scores (rows, classes)."""
        return F.linear(self.standardise(states), self.weight, self.bias)

    def standardise(self, states: Tensor) -> Tensor:
        """What the linear map reads."""
        return F.dropout((states - self.centre) / self.scale, self.dropout, self.training)


def standardise_rows(states: Tensor, heads: Sequence[Head], index: Tensor) -> Tensor:
    """What each row's own head reads of states (rows, width); ``index`` (rows,) says which of the heads that is."""
    centre, scale = (torch.stack([getattr(head, name) for head in heads])[index] for name in ("centre", "scale"))
    read = (states - centre) / scale.unsqueeze(-1)
    rates = [head.dropout if head.training else 0.0 for head in heads]
    return drop_rows(read, torch.tensor(rates, device=states.device)[index]) if any(rates) else read


def score_rows(states: Tensor, heads: Sequence[Head], index: Tensor) -> Tensor:
    """Each row of states (rows, width) through its own head: (rows, most classes), -inf where a head has no class."""
    most = max(head.out_features for head in heads)
    weight = torch.stack([F.pad(h.weight, (0, 0, 0, most - h.out_features)) for h in heads])
    bias = torch.stack([F.pad(h.bias, (0, most - h.out_features), value=float("-inf")) for h in heads])
    read = standardise_rows(states, heads, index)
    return torch.bmm(weight[index], read.unsqueeze(-1)).squeeze(-1) + bias[index]
