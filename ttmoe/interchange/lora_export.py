"""Export of an expert as a PEFT LoRA adapter folder. The export is exact: every update is a low-rank product B A."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.adapter import Adapter
from ttmoe.atomic_write import write_atomically
from ttmoe.bank import Bank
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST, Manifest
from ttmoe.interchange.peft_files import HEAD_WEIGHTS, KEY_PREFIX, LORA_CONFIG, LORA_WEIGHTS
from ttmoe.layer import linear_size

TASK_TYPES = ("FEATURE_EXTRACTION", "CAUSAL_LM")


def export_lora(bank: Bank, name: str, folder: Path, *, manifest: Manifest | None = None,
                task_type: str = "FEATURE_EXTRACTION", ranks: Sequence[int] = ()) -> int:  # fmt: skip
    """Write an expert as an adapter that ``PeftModel.from_pretrained(base, folder)`` loads.

    The head is written to ``head.safetensors`` and the manifest to ``expert.json``. PEFT ignores both; ``import_lora``
    reads them.

    Args:
        bank: The bank.
        name: The expert.
        folder: The folder, created if missing.
        manifest: The expert's manifest, if it has one.
        task_type: ``FEATURE_EXTRACTION`` if the adapter is loaded on the body (``AutoModel``), ``CAUSAL_LM`` if it is
            loaded on the model with its language head, as in vLLM.
        ranks: The ranks that a server allows, ascending. All modules get the smallest one that holds every update,
            filled with zeros. By default each module has the rank of its update.

    Returns:
        The highest rank of a module.

    Raises:
        InputError: If the expert is not loaded, the task type is another one, or no rank is high enough.
    """
    if task_type not in TASK_TYPES:
        raise InputError(f"cannot export task type {task_type!r}", where="export",
                         fix=f"use one of {', '.join(TASK_TYPES)}")  # fmt: skip
    expert = bank.expert(name)
    prefix = f"{bank.model.base_model_prefix}." if task_type == "CAUSAL_LM" else ""
    factors = {prefix + path: pair for path, pair in module_factors(expert.adapter, bank.model).items()}
    if ranks:
        factors = _padded(factors, ranks)
    tensors = {f"{KEY_PREFIX}{path}.lora_{side}.weight": factor.contiguous()
               for path, pair in factors.items() for side, factor in zip("AB", pair, strict=True)}  # fmt: skip
    config = _config(bank.model, factors, len(prefix)) | {"task_type": task_type}
    if manifest:
        config["base_model_name_or_path"] = manifest.base["id"]
    folder.mkdir(parents=True, exist_ok=True)
    head = {key: value.detach().cpu().contiguous() for key, value in expert.head.state_dict().items()}
    write_atomically(folder / HEAD_WEIGHTS, save(head))
    if manifest:
        write_atomically(folder / EXPERT_MANIFEST, json.dumps(asdict(manifest), indent=1, sort_keys=True).encode())
    write_atomically(folder / LORA_WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / LORA_CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())
    return int(config["r"])


def _padded(factors: dict[str, tuple[Tensor, Tensor]], ranks: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Fill A and B of every module with zeros to the smallest of ``ranks`` that holds every update."""
    highest = max(len(a) for a, _ in factors.values())
    rank = next((rank for rank in ranks if rank >= highest), None)
    if rank is None:
        raise InputError(f"an update has rank {highest}, and {ranks[-1]} is the highest that the server allows",
                         where="export", fix="train the expert with a lower adapter.rank, or compress it")  # fmt: skip
    return {
        path: (F.pad(a, (0, 0, 0, rank - len(a))), F.pad(b, (0, rank - len(a)))) for path, (a, b) in factors.items()
    }


@torch.no_grad()
def module_factors(adapter: Adapter, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Compute the low-rank factors of every adapted module.

    The roles of a fused projection are concatenated along the rank; B is zero outside the output rows of each role.

    Returns:
        By module path, A (rank, in) and B (out, rank), fp32 on the CPU. The scaling is included in B.
    """
    parts: dict[str, list[tuple[slice | Tensor, Tensor, Tensor]]] = {}
    for group, (a, b) in zip(adapter.groups, adapter.factors(), strict=True):
        for i, site in enumerate(group.sites):
            parts.setdefault(site.path, []).append((site.rows, a[i].cpu(), b[i].cpu()))
    return {path: _concatenate(roles, _out_features(model, path)) for path, roles in parts.items()}


def _concatenate(roles: list[tuple[slice | Tensor, Tensor, Tensor]], out_features: int) -> tuple[Tensor, Tensor]:
    blocks = []
    for rows, _, b in roles:
        block = b.new_zeros(out_features, b.shape[1])
        block[rows.cpu() if isinstance(rows, Tensor) else rows] = b
        blocks.append(block)
    return torch.cat([a for _, a, _ in roles]), torch.cat(blocks, dim=1)


def _out_features(model: nn.Module, path: str) -> int:
    size = linear_size(model.get_submodule(path))
    assert size is not None, path
    return size[1]


def _config(model: nn.Module, factors: dict[str, tuple[Tensor, Tensor]], prefix_length: int) -> dict[str, Any]:
    """Build the PEFT config. Each module's alpha is its rank: the scaling is in B.

    A loader that ignores the patterns therefore scales correctly too.
    """
    ranks = {path: len(a) for path, (a, _) in factors.items()}
    highest = max(ranks.values())
    lower_ranks = {path: rank for path, rank in ranks.items() if rank != highest}
    transposed = {_stores_in_out(model.get_submodule(path[prefix_length:])) for path in factors}
    return {
        "peft_type": "LORA", "r": highest, "lora_alpha": highest, "rank_pattern": lower_ranks,
        "alpha_pattern": lower_ranks, "target_modules": list(factors), "fan_in_fan_out": transposed == {True},
        "bias": "none", "lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "modules_to_save": None,
        "inference_mode": True, "base_model_name_or_path": getattr(model.config, "_name_or_path", None) or None,
    }  # fmt: skip


def _stores_in_out(module: nn.Module) -> bool:
    """Return whether the weight is stored (in, out), as in GPT-2's ``Conv1D``."""
    return not isinstance(getattr(module, "inner", module), nn.Linear)
