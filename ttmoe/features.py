"""Router features: pooled hidden states of the frozen base, without any expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.errors import InputError

POOLINGS = ("mean", "last")


@dataclass(frozen=True)
class FeatureSpec:
    """The hidden states that a router reads, and how their tokens are pooled.

    Attributes:
        layers: ``last``, ``embeddings``, ``all``, or indexes into the hidden states: 0 is the embeddings, i the output
            of the i-th layer.
        pooling: ``mean``, ``last`` (the last token) or ``both``.
    """

    layers: str | tuple[int, ...] = "last"
    pooling: str = "both"

    def indexes(self, layer_count: int) -> tuple[int, ...]:
        """Return the hidden-state indexes on a base of ``layer_count`` layers.

        Raises:
            InputError: If an index is not in the range from 0 to ``layer_count``.
        """
        if isinstance(self.layers, str):
            named = {"last": (layer_count,), "embeddings": (0,), "all": tuple(range(layer_count + 1))}
            return named[self.layers]
        invalid = [i for i in self.layers if not 0 <= i <= layer_count]
        if invalid:
            raise InputError(f"hidden state {invalid[0]} is not in the range from 0 to {layer_count}",
                             where="router.layers",
                             fix=f"use 0 for the embeddings, up to {layer_count} for the last layer")  # fmt: skip
        return tuple(self.layers)

    @property
    def poolings(self) -> tuple[str, ...]:
        """The poolings whose results are concatenated, in order."""
        return POOLINGS if self.pooling == "both" else (self.pooling,)


ALL_STATES = FeatureSpec("all", "both")


@torch.no_grad()
def pool_state(states: Tensor, mask: Tensor, poolings: Sequence[str] = POOLINGS) -> Tensor:
    """Pool one hidden state over its tokens and scale each pooled vector to unit length.

    Args:
        states: The hidden state (rows, tokens, width).
        mask: Attention mask (rows, tokens), padded on the right.
        poolings: ``mean`` or ``last``, or both.

    Returns:
        Pooled states (rows, poolings, width), fp32, on the device of the mask.
    """
    device, mask = mask.device, mask.to(states.device)  # a base may be divided among GPUs

    def pooled(pooling: str) -> Tensor:
        if pooling == "last":
            rows = torch.arange(len(mask), device=mask.device)
            return states[rows, mask.sum(1) - 1].float()
        return torch.bmm(mask.unsqueeze(1).float(), states.float()).squeeze(1)  # the sum: the scale makes it the mean

    return F.normalize(torch.stack([pooled(pooling) for pooling in poolings], dim=1), dim=-1).to(device)


def pool_states(states: Sequence[Tensor], mask: Tensor, poolings: Sequence[str] = POOLINGS) -> Tensor:
    """Pool several hidden states as ``pool_state`` does, one at a time: all in fp32 exceed the memory of large bases.

    Returns:
        Pooled states (rows, layers, poolings, width), fp32. Flattened from dimension 1 they are the router's features.
    """
    return torch.stack([pool_state(layer, mask, poolings) for layer in states], dim=1)
