"""Router features: pooled hidden states of the bare frozen base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.errors import InputError

POOLINGS = ("mean", "last")


@dataclass(frozen=True)
class FeatureSpec:
    """Which hidden states a router reads, and how tokens are pooled: their ``mean``, the ``last``, or ``both``.

    ``layers`` is ``last``, ``embeddings``, ``all``, or hidden-state indexes: 0 is the embeddings, i what layer i gives.
    """

    layers: str | tuple[int, ...] = "last"
    pooling: str = "both"

    def indexes(self, depth: int) -> tuple[int, ...]:
        """The hidden-state indexes on a base of ``depth`` layers. Raises InputError for one that is not there."""
        if isinstance(self.layers, str):
            return {"last": (depth,), "embeddings": (0,), "all": tuple(range(depth + 1))}[self.layers]
        missing = [i for i in self.layers if not 0 <= i <= depth]
        if missing:
            raise InputError(f"hidden state {missing[0]} is not among 0 to {depth}", where="router.layers",
                             fix=f"0 is the embeddings, {depth} the last layer")  # fmt: skip
        return tuple(self.layers)

    @property
    def poolings(self) -> tuple[str, ...]:
        """The poolings that stand side by side."""
        return POOLINGS if self.pooling == "both" else (self.pooling,)


@torch.no_grad()
def router_features(model: nn.Module, inputs: dict[str, Tensor], spec: FeatureSpec) -> Tensor:
    """Features (rows, layers x poolings x width), fp32: each layer's pooled states at unit length, side by side."""
    states = model(**inputs, output_hidden_states=True).hidden_states
    indexes = spec.indexes(len(states) - 1)
    return pool_states([states[i] for i in indexes], inputs["attention_mask"], spec.poolings).flatten(1)


@torch.no_grad()
def pool_states(states: Sequence[Tensor], mask: Tensor, poolings: Sequence[str] = POOLINGS) -> Tensor:
    """Hidden states (rows, tokens, width), one for each layer, pooled over real tokens, which stand on the left.

    (rows, layers, poolings, width), fp32, at unit length.
    """
    ends = mask.sum(1) - 1
    rows = torch.arange(len(mask), device=mask.device)
    real = mask.unsqueeze(1).float()

    def pooled(layer: Tensor, how: str) -> Tensor:
        if how == "last":
            return layer[rows, ends].float()
        return torch.bmm(real, layer.float()).squeeze(1)  # the mean's length does not matter here: a sum will do

    # A layer at a time: all of them together in full precision are more than caches, and on large bases memory, hold.
    found = [torch.stack([pooled(layer, how) for how in poolings], dim=1) for layer in states]
    return F.normalize(torch.stack(found, dim=1), dim=-1)
