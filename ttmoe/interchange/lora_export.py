"""An expert as a PEFT LoRA adapter folder, exactly: any update here is a low-rank update B A."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ttmoe.adapter import Adapter
from ttmoe.bank import Bank
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST, Manifest, write_whole
from ttmoe.interchange.peft_files import CONFIG, HEAD, LORA_WEIGHTS, ROOT
from ttmoe.layer import linear_size

TASKS = ("FEATURE_EXTRACTION", "CAUSAL_LM")


def export_lora(bank: Bank, name: str, folder: Path, *, manifest: Manifest | None = None,
                task_type: str = "FEATURE_EXTRACTION") -> None:  # fmt: skip
    """Write an expert as an adapter that ``PeftModel.from_pretrained(base, folder)`` loads.

    ``task_type`` says what the base is there: FEATURE_EXTRACTION for the body (``AutoModel``), CAUSAL_LM for the model
    with its language head, as vLLM loads it. The head goes into ``head.safetensors`` and the manifest, if given,
    into ``expert.json``: PEFT ignores both, ``import_lora`` reads them. Raises InputError for an expert that is not
    loaded, or another task type.
    """
    if task_type not in TASKS:
        raise InputError(f"task type {task_type!r} cannot be exported", where="export",
                         fix=f"one of {', '.join(TASKS)}")  # fmt: skip
    expert = bank.expert(name)
    prefix = f"{bank.model.base_model_prefix}." if task_type == "CAUSAL_LM" else ""
    pairs = {prefix + path: pair for path, pair in module_factors(expert.adapter, bank.model).items()}
    tensors = {f"{ROOT}{path}.lora_{side}.weight": factor.contiguous()
               for path, pair in pairs.items() for side, factor in zip("AB", pair, strict=True)}  # fmt: skip
    config = _config(bank.model, pairs, len(prefix)) | {"task_type": task_type}
    if manifest:
        config["base_model_name_or_path"] = manifest.base["id"]
    folder.mkdir(parents=True, exist_ok=True)
    head = {key: value.detach().cpu().contiguous() for key, value in expert.head.state_dict().items()}
    write_whole(folder / HEAD, save(head))
    if manifest:
        write_whole(folder / EXPERT_MANIFEST, json.dumps(asdict(manifest), indent=1, sort_keys=True).encode())
    write_whole(folder / LORA_WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_whole(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())


@torch.no_grad()
def module_factors(adapter: Adapter, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A (rank, in) and B (out, rank) of every adapted module's whole map, by its path, the scale in B.

    Roles that share a fused projection stand side by side: their ranks add up, and B is zero outside of their rows.
    """
    parts: dict[str, list[tuple[slice | Tensor, Tensor, Tensor]]] = {}
    for group, (a, b) in zip(adapter.groups, adapter.factors(), strict=True):
        for i, site in enumerate(group.sites):
            parts.setdefault(site.path, []).append((site.rows, a[i].cpu(), b[i].cpu()))
    return {path: _side_by_side(roles, _out_features(model, path)) for path, roles in parts.items()}


def _side_by_side(roles: list[tuple[slice | Tensor, Tensor, Tensor]], width: int) -> tuple[Tensor, Tensor]:
    blocks = []
    for rows, _, b in roles:
        block = b.new_zeros(width, b.shape[1])
        block[rows.cpu() if isinstance(rows, Tensor) else rows] = b
        blocks.append(block)
    return torch.cat([a for _, a, _ in roles]), torch.cat(blocks, dim=1)


def _out_features(model: nn.Module, path: str) -> int:
    size = linear_size(model.get_submodule(path))
    assert size is not None, path
    return size[1]


def _config(model: nn.Module, pairs: dict[str, tuple[Tensor, Tensor]], cut: int) -> dict[str, Any]:
    """Every module's alpha is its rank: the scale is in B, and a loader that knows no patterns is right too."""
    ranks = {path: len(a) for path, (a, _) in pairs.items()}
    most = max(ranks.values())
    fewer = {path: rank for path, rank in ranks.items() if rank != most}
    stored_in_out = {_stores_in_out(model.get_submodule(path[cut:])) for path in pairs}
    return {
        "peft_type": "LORA", "r": most, "lora_alpha": most, "rank_pattern": fewer, "alpha_pattern": fewer,
        "target_modules": list(pairs), "fan_in_fan_out": stored_in_out == {True}, "bias": "none", "lora_dropout": 0.0,
        "use_rslora": False, "use_dora": False, "modules_to_save": None, "inference_mode": True,
        "base_model_name_or_path": getattr(model.config, "_name_or_path", None) or None,
    }  # fmt: skip


def _stores_in_out(module: nn.Module) -> bool:
    return not isinstance(getattr(module, "inner", module), nn.Linear)
