"""DeBERTa's attention in a mixed batch: relative positions go through the projections once for all rows.

With several experts in a batch that one pass has no expert to go through. The bias of the attention scores is then
worked out for each expert's rows in turn, by the architecture's own code; no row is worked out twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ttmoe.layer import AdaptedLinear, Update


def split_position_bias(attention: nn.Module) -> None:
    """Make a DeBERTa self-attention ready for mixed batches; any other module, or a second call, changes nothing."""
    bias = getattr(attention, "disentangled_attention_bias", None)
    if bias is not None and "disentangled_attention_bias" not in vars(attention):
        attention.disentangled_attention_bias = _by_expert(attention, bias)  # type: ignore[assignment]


def _by_expert(attention: nn.Module, bias: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def split(query: Tensor, key: Tensor, *rest: object) -> Tensor:
        # query and key are (batch * heads, tokens, width of a head)
        layers = [child for child in attention.children() if isinstance(child, AdaptedLinear)]
        rows = next((u.rows for layer in layers for u in layer.updates.values() if u.rows is not None), None)
        if rows is None:
            return bias(query, key, *rest)
        owner = rows.repeat_interleave(len(query) // len(rows))
        places = [(owner == expert).nonzero().flatten() for expert in range(int(rows.max()) + 1)]
        parts = []
        for expert, place in enumerate(places):
            with _only(layers, expert):
                parts.append(bias(query[place], key[place], *rest))
        return torch.cat(parts)[torch.cat(places).argsort()]

    return split


@contextmanager
def _only(layers: Sequence[AdaptedLinear], expert: int) -> Iterator[None]:
    before: list[dict[str, Update]] = [layer.updates for layer in layers]
    try:
        for layer in layers:
            layer.updates = {role: update.only(expert) for role, update in layer.updates.items()}
        yield
    finally:
        for layer, updates in zip(layers, before, strict=True):
            layer.updates = updates
