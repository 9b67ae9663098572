"""A tiny library in a folder: a random BERT, three experts of different kinds and a router over them."""

from __future__ import annotations

from pathlib import Path

import torch
from architectures import stir

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import Base, digest_folder, load_body
from ttmoe.expert_files import save_expert
from ttmoe.features import FeatureSpec
from ttmoe.router import Router, save_router

KINDS = {"colours": ("classify", ("red", "green", "blue")), "animals": ("pair", ("cat", "dog")),
         "which": ("choice", ())}  # fmt: skip
SPECS = {"colours": AdapterSpec(rank=2, alpha=1.0), "animals": AdapterSpec(method="lora", rank=3, targets=("k", "o")),
         "which": AdapterSpec(rank=3, alpha=1.0, targets=("v",), first_layer=1)}  # fmt: skip
WIDTH = 64
SEED = 3  # with this seed the router sends some of the tests' rows to each expert


def base_of(folder: Path) -> Base:
    return Base("folder", "tiny", "r1", digest_folder(folder), str(folder), "float32", 32, "mean")


FEATURES = FeatureSpec((0, 1))


def router_of(features: FeatureSpec = FEATURES) -> Router:
    router = Router(tuple(KINDS), WIDTH * len(features.indexes(2)) * len(features.poolings), features)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        router.gate.weight.copy_(torch.randn(router.gate.weight.shape, generator=generator) * 9)
    return router


def save_library(folder: Path, base: Base) -> Path:
    bank = Bank(load_body(base), base.pooling)
    for i, (task, (kind, labels)) in enumerate(KINDS.items()):
        expert = stir(bank.add(task, SPECS[task], len(labels) or 1, torch.Generator()), seed=i)
        save_expert(expert, folder / "experts" / task, task=task, kind=kind, labels=labels, base=base.record(),
                    spec_hash=f"{task}-hash", metrics={})  # fmt: skip
    save_router(router_of(), folder, base.record(), {task: f"{task}-hash" for task in KINDS}, {})
    return folder
