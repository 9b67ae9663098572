"""Router features: pooled hidden states of the bare frozen base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.encoding import pool
from ttmoe.errors import InputError


@dataclass(frozen=True)
class FeatureSpec:
    """Which hidden states a router reads, and how tokens are pooled.

    ``layers`` is ``last``, ``embeddings``, ``all``, or hidden-state indexes: 0 is the embeddings, i what layer i gives.
    """

    layers: str | tuple[int, ...] = "last"
    pooling: str = "mean"

    def indexes(self, depth: int) -> tuple[int, ...]:
        """The hidden-state indexes on a base of ``depth`` layers. Raises InputError for one that is not there."""
        if isinstance(self.layers, str):
            return {"last": (depth,), "embeddings": (0,), "all": tuple(range(depth + 1))}[self.layers]
        missing = [i for i in self.layers if not 0 <= i <= depth]
        if missing:
            raise InputError(f"hidden state {missing[0]} is not among 0 to {depth}", where="router.layers",
                             fix=f"0 is the embeddings, {depth} the last layer")  # fmt: skip
        return tuple(self.layers)


@torch.no_grad()
def router_features(model: nn.Module, inputs: dict[str, Tensor], spec: FeatureSpec) -> Tensor:
    """Features (rows, layers x width), fp32: each layer's pooled state at unit length, side by side."""
    states = model(**inputs, output_hidden_states=True).hidden_states
    return read_features([states[i] for i in spec.indexes(len(states) - 1)], inputs["attention_mask"], spec)


def read_features(states: Sequence[Tensor], mask: Tensor, spec: FeatureSpec) -> Tensor:
    """The same from the chosen hidden states (rows, tokens, width), such as a trunk's."""
    return torch.cat([F.normalize(pool(s, mask, spec.pooling), dim=-1) for s in states], dim=-1)
