"""Merge an expert into the base's weights, W + B A, to serve it at the cost of the bare base."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ttmoe.adapter import Adapter
from ttmoe.errors import InputError
from ttmoe.layer import AdaptedLinear
from ttmoe.quantization import is_quantised


@torch.no_grad()
def merged_weights(adapter: Adapter, layers: Mapping[str, AdaptedLinear]) -> dict[str, Tensor]:
    """Return the weight of every layer that ``adapter`` adapts, with the update added.

    The sum is computed in fp32 and rounded once to the base's dtype. The layers are not changed.

    Args:
        adapter: The adapter to add.
        layers: The adapted layers by path.

    Returns:
        New weights by the layer's path, each of the shape and dtype of the layer's weight.

    Raises:
        InputError: If a merged weight is not finite, or the base is quantised.
    """
    if any(is_quantised(layers[site.path].weight) for group in adapter.groups for site in group.sites):
        raise InputError("the base is quantised, so no expert can be merged into it", where="bank",
                         fix="serve the expert unmerged")  # fmt: skip
    sums: dict[str, Tensor] = {}
    for group, (a, b) in zip(adapter.groups, adapter.factors(), strict=True):
        for i, site in enumerate(group.sites):
            weight = layers[site.path].weight
            total = sums.setdefault(site.path, weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True))
            rows = total if isinstance(layers[site.path].inner, nn.Linear) else total.T  # Conv1D stores (in, out)
            rows[site.rows] += b[i].to(total) @ a[i].to(total)
    merged = {path: total.to(layers[path].weight.dtype) for path, total in sums.items()}
    not_finite = [path for path, weight in merged.items() if not torch.isfinite(weight).all()]
    if not_finite:
        raise InputError(f"merged weights are not finite in {', '.join(not_finite)}; nothing was merged", where="bank",
                         fix="train the expert again, or use a base of a wider dtype")  # fmt: skip
    return merged


class Merge:
    """One merged expert and the base's original weights.

    Attributes:
        name: Name of the merged expert.
    """

    def __init__(self, name: str, adapter: Adapter, layers: Mapping[str, AdaptedLinear]) -> None:
        self.name = name
        merged = merged_weights(adapter, layers)
        self._originals = [(layers[path].weight, layers[path].weight.data) for path in merged]
        for path, weight in merged.items():
            layers[path].weight.data = weight

    def undo(self) -> None:
        """Restore the original tensors, on the device and in the dtype that the base has now."""
        for weight, original in self._originals:
            weight.data = original.to(weight.device, weight.dtype)
