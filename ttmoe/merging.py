"""An expert written into the base's weights: W + B A, for serving one expert at the bare base's cost."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ttmoe.adapter import Adapter
from ttmoe.errors import InputError
from ttmoe.layer import AdaptedLinear


@torch.no_grad()
def merged_weights(adapter: Adapter, layers: Mapping[str, AdaptedLinear]) -> dict[str, Tensor]:
    """The weight of every layer that ``adapter`` acts on, with its update added, by the layer's path.

    Summed in fp32 and rounded once to the base's dtype; the layers stay as they are. Raises InputError for a result
    that is not finite.
    """
    sums: dict[str, Tensor] = {}
    for group, (a, b) in zip(adapter.groups, adapter.factors(), strict=True):
        for i, site in enumerate(group.sites):
            weight = layers[site.path].weight
            total = sums.setdefault(site.path, weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True))
            rows = total if isinstance(layers[site.path].inner, nn.Linear) else total.T  # Conv1D stores (in, out)
            rows[site.rows] += b[i].to(total.dtype) @ a[i].to(total.dtype)
    merged = {path: total.to(layers[path].weight.dtype) for path, total in sums.items()}
    broken = [path for path, weight in merged.items() if not torch.isfinite(weight).all()]
    if broken:
        raise InputError(f"merged weights would not be finite in {', '.join(broken)}", where="bank",
                         fix="nothing was merged; train the expert again, or use a base of a wider dtype")  # fmt: skip
    return merged


class Merge:
    """One merged expert, and the weights that were there before it."""

    def __init__(self, name: str, adapter: Adapter, layers: Mapping[str, AdaptedLinear]) -> None:
        self.name = name
        merged = merged_weights(adapter, layers)
        self._kept = [(layers[path].weight, layers[path].weight.data) for path in merged]
        for path, weight in merged.items():
            layers[path].weight.data = weight

    def undo(self) -> None:
        """Put the very tensors back that were replaced (following the base, should it have moved meanwhile)."""
        for weight, before in self._kept:
            weight.data = before.to(weight.device, weight.dtype)
