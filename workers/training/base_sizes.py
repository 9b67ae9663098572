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
        device: Type of the device, ``cpu`` or ``cuda``.
        normed: Width of the queries and keys together if they are normalised, as in Qwen3; else 0.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    tokens: int
    dtype_bytes: int
    gated: bool
    upcasts: bool
    device: str
    normed: int = 0

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
            device="cpu" if device == "cpu" else "cuda",
            normed=_normed_width(layers[0]),
        )

    def saved_bytes_per_token(self, adapted_width: int) -> float:
        """Return the bytes that one layer saves for the backward pass, per token.

        Saved are q, k and v, the inputs of all norms, the input of the activation and, if the layer is gated, both
        factors of the product. Frozen linear maps save nothing.

        Args:
            adapted_width: Width of the inputs of the layer's adapted linear maps, together.
        """
        size = self.dtype_bytes
        norms = 2 * (FP32_BYTES if self.upcasts else size)
        hidden = self.hidden * (3 * size + norms)
        feed_forward = self.intermediate * size * (3 if self.gated else 1)
        normed = self.normed * (FP32_BYTES if self.upcasts else size)
        return hidden + feed_forward + normed + adapted_width * size + self._saved_attention_bytes()

    def _saved_attention_bytes(self) -> float:
        """Return the bytes of attention that a token saves: its weights; on a GPU, where they are fused, its output."""
        if self.device != "cpu":
            return self.hidden * self.dtype_bytes
        weights = self.dtype_bytes + (FP32_BYTES if self.upcasts and self.dtype_bytes < FP32_BYTES else 0)
        return self.heads * self.tokens * weights

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


def _normed_width(layer: nn.Module) -> int:
    """Return the width of the queries and keys of a layer together if both have norms of their own, else 0."""
    modules = {name.rpartition(".")[2]: module for name, module in layer.named_modules()}
    if not {"q_norm", "k_norm", "q_proj", "k_proj"} <= modules.keys():
        return 0
    widths: list[Any] = [modules[name].out_features for name in ("q_proj", "k_proj")]
    return int(sum(widths))
