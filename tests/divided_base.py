"""Passes through a base that is divided between two simulated GPUs; prints the device of each result as JSON.

The tensors are fake: they have shapes and devices, no values, and an operation on tensors of two devices raises. torch
without CUDA cannot index fake tensors of CUDA, so the GPUs are devices of a backend of this process.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from transformers import AutoModel, LlamaConfig

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.expert import Expert
from ttmoe.features import pool_state
from ttmoe.trunk import use_hidden_states

PLACES = {"embed_tokens": 0, "rotary_emb": 0, "layers.0": 0, "layers.1": 0, "layers.2": 1, "layers.3": 1, "norm": 1}


class Backend(_DummyBackendModule):
    """The module ``torch.card``: autocast asks it for its formats."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Placed(AlignDevicesHook):
    """What accelerate does with a module whose weights are on their device already."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module


def move(module: nn.Module, device: str | torch.device) -> nn.Module:
    """Move the tensors of a module; ``Module.to`` cannot exchange fake parameters."""
    for each in module.modules():
        for name, value in each._parameters.items():
            if value is not None:
                each._parameters[name] = nn.Parameter(value.detach().to(device), requires_grad=False)
        for name, value in each._buffers.items():
            each._buffers[name] = None if value is None else value.to(device)
    return module


def divide(model: nn.Module) -> None:
    """Divide the layers between two GPUs, as ``dispatch_model`` of accelerate does."""
    for name, place in PLACES.items():
        move(model.get_submodule(name), f"card:{place}")
        add_hook_to_module(model.get_submodule(name), Placed(f"card:{place}"))
    add_hook_to_module(model, Placed("card:0", io_same_device=True))


def devices_of_passes() -> dict[str, Any]:
    """Return the devices of the results of each kind of pass."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, vocab_size=99
    )
    model = AutoModel.from_config(config).eval()
    model.config.use_cache = False
    divide(model)
    Expert.to = move  # type: ignore[method-assign, assignment]
    bank = Bank(model, "last").eval()
    for name, rank in {"a": 2, "b": 2, "c": 4}.items():
        bank.add(name, AdapterSpec(rank=rank), 3)
    bank.requires_grad_(False)
    ids = torch.ones(3, 5, dtype=torch.long, device="card:0")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pooled = use_hidden_states(model, inputs, lambda index, states: pool_state(states, inputs["attention_mask"]))
    trunk = bank.trunk(3)
    states = trunk.states(inputs)
    bank.add("high", AdapterSpec(rank=2, first_layer=3), 3)
    return {
        "one expert": str(bank(inputs, "a").device),
        "mixed": str(bank(inputs, ["a", "b", "c"]).device),
        "alike": str(bank(inputs, ["a", "b", "a"]).device),
        "pooled": [str(each.device) for each in pooled],
        "trunk": str(states.device),
        "above": str(trunk.run_above(states, inputs).device),
        "expert above": str(bank(inputs, "high", states=states, depth=3).device),
    }


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("card", Backend())
    with FakeTensorMode(), torch.no_grad():
        print(json.dumps(devices_of_passes()))
