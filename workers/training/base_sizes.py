"""The sizes of a base that decide how much memory a pass through it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ttmoe.architectures import ARCHITECTURES, architecture_of, layer_list
from ttmoe.base import Base

FP32_BYTES = 4


@dataclass(frozen=True)
class BaseSizes:
    """Sizes of a base and of the passes through it.

    Attributes:
        layers: Number of layers.
        hidden: Width of a hidden state.
        intermediate: Width of the feed-forward layer.
        heads: Number of attention heads.
        tokens: Tokens in the longest sequence that the base reads.
        dtype_bytes: Bytes of one number.
        gated: Whether the feed-forward layer is gated.
        upcasts: Whether norms and softmax compute in fp32 (models with RMS norms do).
        hidden_dropout: Whether hidden states have dropout.
        attention_dropout: Whether attention weights have dropout.
        device: Type of the device, ``cpu`` or ``cuda``.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    tokens: int
    dtype_bytes: int
    gated: bool
    upcasts: bool
    hidden_dropout: bool
    attention_dropout: bool
    device: str

    @classmethod
    def of(cls, model: nn.Module, base: Base, device: str) -> BaseSizes:
        """Read the sizes from a base model, which may be on the meta device."""
        config: Any = model.config
        layers = layer_list(model)
        linears = [module for module in layers[0].modules() if isinstance(module, nn.Linear)]
        paths = ARCHITECTURES.get(architecture_of(model), ("", {}))[1]
        hidden = config.hidden_size
        widest = max((linear.in_features for linear in linears), default=4 * hidden)
        return cls(
            layers=len(layers),
            hidden=hidden,
            intermediate=getattr(config, "intermediate_size", None) or max(widest, 4 * hidden),
            heads=config.num_attention_heads,
            tokens=min(base.max_length, getattr(config, "max_position_embeddings", None) or base.max_length),
            dtype_bytes=getattr(torch, base.dtype).itemsize,
            gated="gate" in paths or any("gate" in name for name, _ in layers[0].named_modules()),
            upcasts=not any(isinstance(module, nn.LayerNorm) for module in layers[0].modules()),
            hidden_dropout=_any_set(config, "hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "dropout"),
            attention_dropout=_any_set(config, "attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"),
            device="cpu" if device == "cpu" else "cuda",
        )

    def saved_bytes_per_token(self, adapted_width: int) -> float:
        """Return the bytes that one layer saves for the backward pass, per token.

        Saved are q, k and v, the inputs of both norms, the input of the activation and, if the layer is gated, both
        factors of the product; after a dropout its mask, which takes one byte a number on a GPU and a whole number on
        a CPU. Frozen linear maps save nothing.

        Args:
            adapted_width: Width of the inputs of the layer's adapted linear maps, together.
        """
        size, mask = self.dtype_bytes, self._mask_bytes
        norms = 2 * (FP32_BYTES if self.upcasts else size)
        hidden = self.hidden * (3 * size + norms + 2 * mask * self.hidden_dropout)
        feed_forward = self.intermediate * size * (3 if self.gated else 1)
        return hidden + feed_forward + adapted_width * size + self._saved_attention_bytes()

    def _saved_attention_bytes(self) -> float:
        """Return the bytes of attention that a token saves: its weights; on a GPU, where they are fused, its output."""
        if self.device != "cpu":
            return self.hidden * self.dtype_bytes
        weights = self.dtype_bytes + (FP32_BYTES if self.upcasts and self.dtype_bytes < FP32_BYTES else 0)
        dropout = (self._mask_bytes + self.dtype_bytes) * self.attention_dropout
        return self.heads * self.tokens * (weights + dropout)

    def transient_bytes(self, tokens: int) -> int:
        """Return the bytes that one layer holds at a time in a pass of ``tokens`` tokens, besides what it saves.

        Counted are three (gated: four) tensors of the intermediate width, six hidden states and, on a CPU, three
        tensors of attention weights.
        """
        # What is computed in fp32 takes its copy and its result.
        copies = 2 * FP32_BYTES if self.upcasts and self.dtype_bytes < FP32_BYTES else 0
        per_token = (4 if self.gated else 3) * self.intermediate * self.dtype_bytes
        per_token += self.hidden * (6 * self.dtype_bytes + copies)
        if self.device == "cpu":
            per_token += self.heads * self.tokens * (3 * self.dtype_bytes + copies)
        return tokens * per_token

    @property
    def _mask_bytes(self) -> int:
        return self.dtype_bytes if self.device == "cpu" else 1


def _any_set(config: Any, *names: str) -> bool:
    return any(bool(getattr(config, name, 0)) for name in names)
