"""DeBERTa's disentangled attention in a batch of several experts.

DeBERTa projects the relative position embeddings once for all rows of a batch, so with several experts no single expert
applies to that projection. The position bias of the attention scores is therefore computed separately for the rows of
each expert, with transformers' own method; no row is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ttmoe.layer import AdaptedLinear, Update


def split_position_bias(attention: nn.Module) -> None:
    """Patch a DeBERTa self-attention to compute its position bias expert by expert.

    Other modules, and attentions that are already patched, stay as they are.
    """
    bias = getattr(attention, "disentangled_attention_bias", None)
    if bias is not None and "disentangled_attention_bias" not in vars(attention):
        attention.disentangled_attention_bias = _by_expert(attention, bias)  # type: ignore[assignment]


def _by_expert(attention: nn.Module, bias: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def split_bias(query: Tensor, key: Tensor, *args: object) -> Tensor:
        # query and key are (batch * heads, tokens, width of a head)
        layers = [child for child in attention.children() if isinstance(child, AdaptedLinear)]
        indexes = (update.expert_index for layer in layers for update in layer.updates.values())
        expert_index = next((index for index in indexes if index is not None), None)
        if expert_index is None:
            with _single_expert(layers, 0):
                return bias(query, key, *args)
        expert_of_head = expert_index.repeat_interleave(len(query) // len(expert_index))
        positions = [(expert_of_head == e).nonzero().flatten() for e in range(int(expert_index.max()) + 1)]
        parts = []
        for expert, position in enumerate(positions):
            with _single_expert(layers, expert):
                parts.append(bias(query[position], key[position], *args))
        return torch.cat(parts)[torch.cat(positions).argsort()]

    return split_bias


@contextmanager
def _single_expert(layers: Sequence[AdaptedLinear], expert: int) -> Iterator[None]:
    """Apply the updates of one expert, to the input that its rows share, within this context."""
    before: list[dict[str, Update]] = [layer.updates for layer in layers]
    try:
        for layer in layers:
            layer.updates = {role: update.select(expert) for role, update in layer.updates.items()}
        yield
    finally:
        for layer, updates in zip(layers, before, strict=True):
            layer.updates = updates
