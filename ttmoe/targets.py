"""Where adapters go: the roles of an architecture's linear maps, layer by layer.

A *site* is one linear map (or the part of a fused one) that plays one role in one layer. Roles are the same words for
every architecture: ``q k v o`` in attention, ``up gate down`` in the feed-forward part, where ``gate`` is the map that
goes through the activation and ``up`` the one it multiplies (or the only one).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ttmoe.errors import InputError
from ttmoe.layer import linear_size

ROLES = ("q", "k", "v", "o", "up", "gate", "down")
OutputRows = Callable[[object, int], "slice | torch.Tensor"]


@dataclass(frozen=True)
class Site:
    """One adaptable linear map: ``path`` inside the model, and the output ``rows`` of it that play ``role``.

    ``rows`` is a slice of the output features, or an index tensor where a fused projection interleaves heads.
    """

    layer: int
    role: str
    path: str
    in_features: int
    out_features: int
    rows: slice | torch.Tensor

    @property
    def place(self) -> tuple:
        """What it adapts, whatever the role is called."""
        return (self.path, self.rows.start, self.rows.stop) if isinstance(self.rows, slice) else (self.path, self.role)


def _whole(config: object, width: int) -> slice:
    return slice(0, width)


def _attention_part(which: int) -> OutputRows:
    """Rows of q (0), k (1) or v (2) in a projection that stacks them, with fewer key heads where the config says so."""

    def rows(config: object, width: int) -> slice:
        heads = config.num_attention_heads  # type: ignore[attr-defined]
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        size = width // (heads + 2 * key_heads)
        starts = (0, heads * size, (heads + key_heads) * size, width)
        return slice(starts[which], starts[which + 1])

    return rows


def _part(which: int, of: int) -> OutputRows:
    return lambda config, width: slice(which * width // of, (which + 1) * width // of)


def _interleaved(which: int) -> OutputRows:
    """GPT-NeoX stores q, k and v of head 0, then of head 1, and so on."""

    def rows(config: object, width: int) -> torch.Tensor:
        heads = config.num_attention_heads  # type: ignore[attr-defined]
        return torch.arange(width).view(heads, 3, -1)[:, which].reshape(-1)

    return rows


TargetPlace = tuple[str, OutputRows]


def _plain(**paths: str) -> dict[str, TargetPlace]:
    return {role: (path, _whole) for role, path in paths.items()}


def _fused(path: str, parts: Callable[[int], OutputRows]) -> dict[str, TargetPlace]:
    return {role: (path, parts(i)) for i, role in enumerate("qkv")}


_LLAMA = ("layers", _plain(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj",
                           up="mlp.up_proj", gate="mlp.gate_proj", down="mlp.down_proj"))  # fmt: skip
_BERT_REST = dict(o="attention.output.dense", up="intermediate.dense", down="output.dense")
_BERT = ("encoder.layer", _plain(q="attention.self.query", k="attention.self.key", v="attention.self.value",
                                 **_BERT_REST))  # fmt: skip

# model_type -> (path of the layer list in the body, role -> (path in the layer, rows of the output))
ARCHITECTURES: dict[str, tuple[str, dict[str, TargetPlace]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2"),
                    _LLAMA),
    "phi3": ("layers", {**_fused("self_attn.qkv_proj", _attention_part), **_plain(o="self_attn.o_proj"),
                        "gate": ("mlp.gate_up_proj", _part(0, 2)), "up": ("mlp.gate_up_proj", _part(1, 2)),
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
                              "gate": ("mlp.Wi", _part(0, 2)), "up": ("mlp.Wi", _part(1, 2))}),
}  # fmt: skip


def architecture_of(model: nn.Module) -> str:
    """What transformers calls the model's type."""
    return model.config.model_type  # type: ignore[union-attr, return-value]


def layer_list(model: nn.Module) -> nn.ModuleList:
    """The model's transformer layers, in order.

    Raises InputError for an architecture without an entry whose layers cannot be told from its modules.
    """
    kind = architecture_of(model)
    if kind in ARCHITECTURES:
        return model.get_submodule(ARCHITECTURES[kind][0])  # type: ignore[return-value]
    depth = getattr(model.config, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(lists) != 1:
        raise InputError(f"the layers of architecture {kind!r} are not known", where="base",
                         fix=f"known architectures: {', '.join(sorted(ARCHITECTURES))}")  # fmt: skip
    return lists[0]  # type: ignore[return-value]


def layer_path(model: nn.Module) -> str:
    """The path of the layer list in the model. Raises InputError as ``layer_list`` does."""
    layers = layer_list(model)
    return next(name for name, module in model.named_modules() if module is layers)


def role_of(model: nn.Module, path: str) -> str | None:
    """The role that the whole map at ``path`` in a layer plays, if it is one."""
    places = ARCHITECTURES.get(architecture_of(model), ("", {}))[1]
    return next((role for role, (where, rows) in places.items() if where == path and rows is _whole), None)


def find_sites(model: nn.Module, targets: Iterable[str], first: int = 0, last: int | None = None) -> list[Site]:
    """All sites of ``targets`` in layers ``first`` to ``last`` (inclusive), layer by layer.

    A target is a role, or a regular expression that matches the whole path of a linear map inside its layer. What two
    targets meet is taken once. Raises InputError for a target that meets nothing, or for a range with no layer in it.
    """
    layers = layer_list(model)
    top = len(layers) - 1 if last is None else last
    if not 0 <= first <= top < len(layers):
        raise InputError(f"layers {first} to {top} are not among the base's {len(layers)} layers "
                         f"(0 to {len(layers) - 1})", where="adapter.layers",
                         fix=f"write `all`, or a range such as {len(layers) // 2}-")  # fmt: skip
    prefix = layer_path(model)
    sites: dict[tuple, Site] = {}
    for target in targets:
        _require_readable(target)
        found = [site for i in range(first, top + 1)
                 for site in _sites_in(model, layers[i], f"{prefix}.{i}", i, target)]  # fmt: skip
        if not found:
            raise _nothing_met(model, layers[first], target)
        for site in found:
            sites.setdefault(site.place, site)
    return list(sites.values())


def _require_readable(target: str) -> None:
    try:
        re.compile(target)
    except re.error as error:
        raise InputError(f"target {target!r} is not a regular expression ({error})", where="adapter.targets",
                         fix=f"write a role ({', '.join(ROLES)}) or a path as in mlp\\..*_proj") from error  # fmt: skip


def _sites_in(model: nn.Module, layer: nn.Module, prefix: str, index: int, target: str) -> list[Site]:
    places = ARCHITECTURES.get(architecture_of(model), ("", {}))[1]
    if target in places:
        path, rows = places[target]
        module = layer.get_submodule(path)
        size = linear_size(module)
        if size is None:
            return []
        part = rows(model.config, size[1])
        width = len(range(size[1])[part]) if isinstance(part, slice) else len(part)
        return [Site(index, target, f"{prefix}.{path}", size[0], width, part)]
    if target in ROLES:
        return []
    return [Site(index, name, f"{prefix}.{name}", *size, slice(0, size[1]))
            for name, size in _linear_maps(layer) if re.fullmatch(target, name)]  # fmt: skip


def _linear_maps(layer: nn.Module) -> list[tuple[str, tuple[int, int]]]:
    sizes = [(name, linear_size(module)) for name, module in layer.named_modules() if not name.endswith(".inner")]
    return [(name, size) for name, size in sizes if size]


def _nothing_met(model: nn.Module, layer: nn.Module, target: str) -> InputError:
    kind = architecture_of(model)
    names = [name for name, _ in _linear_maps(layer)]
    known = [*ARCHITECTURES.get(kind, ("", {}))[1], *names]
    near = difflib.get_close_matches(target, known, 1)
    return InputError(f"target {target!r} meets no linear map of architecture {kind!r}", where="adapter.targets",
                      fix=(f"did you mean {near[0]!r}? " if near else "")
                      + f"there are: {', '.join(known)}")  # fmt: skip
