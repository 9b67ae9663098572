"""Map each supported transformers architecture to its layer list and to the linear maps inside a layer.

Each linear map, or part of a fused one, has a role. Roles have the same names in every architecture: ``q k v o`` in
attention, ``up gate down`` in the feed-forward block. ``gate`` is the map whose output goes through the activation;
``up`` is the map that it multiplies, or the only input map of a block without a gate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ttmoe.errors import InputError

ROLES = ("q", "k", "v", "o", "up", "gate", "down")

OutputRows = Callable[[object, int], "slice | torch.Tensor"]
"""Maps (model config, output width) to the output features of one role: a slice, or an index tensor."""

RoleLocation = tuple[str, OutputRows]
"""The path of a linear map inside a layer, and the output features of the map that play the role."""


def _whole(config: object, width: int) -> slice:
    return slice(0, width)


def _attention_part(part: int) -> OutputRows:
    """Select q (0), k (1) or v (2) in a projection that stacks them, with grouped key heads if the config has them."""

    def rows(config: object, width: int) -> slice:
        heads = config.num_attention_heads  # type: ignore[attr-defined]
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        size = width // (heads + 2 * key_heads)
        starts = (0, heads * size, (heads + key_heads) * size, width)
        return slice(starts[part], starts[part + 1])

    return rows


def _equal_part(part: int, parts: int) -> OutputRows:
    return lambda config, width: slice(part * width // parts, (part + 1) * width // parts)


def _interleaved(part: int) -> OutputRows:
    """Select q (0), k (1) or v (2) in GPT-NeoX's projection, which stores q, k and v head by head."""

    def rows(config: object, width: int) -> torch.Tensor:
        heads = config.num_attention_heads  # type: ignore[attr-defined]
        return torch.arange(width).view(heads, 3, -1)[:, part].reshape(-1)

    return rows


def _plain(**paths: str) -> dict[str, RoleLocation]:
    return {role: (path, _whole) for role, path in paths.items()}


def _fused(path: str, part: Callable[[int], OutputRows]) -> dict[str, RoleLocation]:
    return {role: (path, part(i)) for i, role in enumerate("qkv")}


_LLAMA = ("layers", _plain(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj",
                           up="mlp.up_proj", gate="mlp.gate_proj", down="mlp.down_proj"))  # fmt: skip
_BERT_REST = dict(o="attention.output.dense", up="intermediate.dense", down="output.dense")
_BERT = ("encoder.layer", _plain(q="attention.self.query", k="attention.self.key", v="attention.self.value",
                                 **_BERT_REST))  # fmt: skip

# model_type -> (path of the layer list in the body, role -> location)
ARCHITECTURES: dict[str, tuple[str, dict[str, RoleLocation]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2"),
                    _LLAMA),
    "phi3": ("layers", {**_fused("self_attn.qkv_proj", _attention_part), **_plain(o="self_attn.o_proj"),
                        "gate": ("mlp.gate_up_proj", _equal_part(0, 2)), "up": ("mlp.gate_up_proj", _equal_part(1, 2)),
                        **_plain(down="mlp.down_proj")}),
    "gpt2": ("h", {**_fused("attn.c_attn", _attention_part),
                   **_plain(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj")}),
    "gpt_neox": ("layers", {**_fused("attention.query_key_value", _interleaved),
                            **_plain(o="attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h")}),
    "opt": ("decoder.layers", _plain(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj",
                                     o="self_attn.out_proj", up="fc1", down="fc2")),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "deberta-v2": ("encoder.layer", _plain(q="attention.self.query_proj", k="attention.self.key_proj",
                                           v="attention.self.value_proj", **_BERT_REST)),
    "modernbert": ("layers", {**_fused("attn.Wqkv", _attention_part), **_plain(o="attn.Wo", down="mlp.Wo"),
                              "gate": ("mlp.Wi", _equal_part(0, 2)), "up": ("mlp.Wi", _equal_part(1, 2))}),
}  # fmt: skip


def architecture_of(model: nn.Module) -> str:
    """Return the model's architecture name, ``config.model_type`` in transformers."""
    return model.config.model_type  # type: ignore[union-attr, return-value]


def role_locations(model: nn.Module) -> dict[str, RoleLocation]:
    """Return the location of each role in a layer; empty if the architecture has no entry in ``ARCHITECTURES``."""
    return ARCHITECTURES.get(architecture_of(model), ("", {}))[1]


def layer_list(model: nn.Module) -> nn.ModuleList:
    """Return the model's transformer layers in order.

    Raises:
        InputError: If the architecture has no entry in ``ARCHITECTURES`` and not exactly one module list of the model
            has ``config.num_hidden_layers`` modules.
    """
    architecture = architecture_of(model)
    if architecture in ARCHITECTURES:
        return model.get_submodule(ARCHITECTURES[architecture][0])  # type: ignore[return-value]
    depth = getattr(model.config, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(lists) != 1:
        raise InputError(f"cannot find the layers of architecture {architecture!r}", where="base",
                         fix=f"use one of the supported architectures: {', '.join(sorted(ARCHITECTURES))}")  # fmt: skip
    return lists[0]  # type: ignore[return-value]


def layer_path(model: nn.Module) -> str:
    """Return the layer list's path in the model, such as ``encoder.layer``. Raises InputError like ``layer_list``."""
    layers = layer_list(model)
    return next(name for name, module in model.named_modules() if module is layers)


def role_of(model: nn.Module, path: str) -> str | None:
    """Return the role of the linear map at ``path`` inside a layer; None if no role takes exactly the whole map."""
    return next((role for role, location in role_locations(model).items() if location == (path, _whole)), None)
