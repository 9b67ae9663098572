"""Router features from one complete pass of the base, as a reference for tests and an input for benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttmoe.features import FeatureSpec, pool_states


@torch.no_grad()
def router_features(model: nn.Module, inputs: dict[str, Tensor], spec: FeatureSpec) -> Tensor:
    """Return features (rows, layers x poolings x width), fp32."""
    states = model(**inputs, output_hidden_states=True).hidden_states
    indexes = spec.indexes(len(states) - 1)
    return pool_states([states[i] for i in indexes], inputs["attention_mask"], spec.poolings).flatten(1)
