"""Optimizer and learning rate schedule of one expert."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from ttmoe.expert import Expert
from workers.training.settings import TrainSettings


class Optimizer(Protocol):
    """What the training loop asks of an optimizer; torch's have it."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """Take a step with the gradients of the parameters."""

    def zero_grad(self, set_to_none: bool = True) -> Any:
        """Forget the gradients, or set them to zero."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the groups, as torch's optimizers do."""

    def load_state_dict(self, saved: Any) -> Any:
        """Load what ``state_dict`` returned."""


def make_optimizer(expert: Expert, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over the adapter and, if it is trained, the head; each has its own learning rate."""
    groups: list[tuple[nn.Module, float]] = [(expert.adapter, settings.lr)]
    if expert.head.weight.requires_grad:
        groups.append((expert.head, settings.head_lr))
    parameters = [{"params": list(part.parameters()), "lr": lr, "initial_lr": lr} for part, lr in groups]
    options = _implementation(expert.head.weight.device)
    return torch.optim.AdamW(parameters, weight_decay=settings.weight_decay, **options)  # type: ignore[arg-type]


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Load the state of an optimizer, which may have run on a device of another type."""
    device = optimizer.param_groups[0]["params"][0].device
    groups = [{**group, **_implementation(device)} for group in saved["param_groups"]]
    optimizer.load_state_dict({**saved, "param_groups": groups})


def _implementation(device: torch.device) -> dict[str, bool]:
    fused = is_fused(device)
    return {"fused": fused, "capturable": fused, "foreach": not fused}


def is_fused(device: torch.device) -> bool:
    """Return whether an optimizer on this device updates all parameters in one kernel.

    It does on a GPU, where a CUDA graph can contain the kernel. On a CPU, operations on lists of parameters are faster.
    """
    return device.type == "cuda"


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """Return the factor (0 to 1) of the full learning rate at ``step``, where 0 is the first step.

    The factor rises linearly during the warmup and then falls according to ``settings.schedule``.
    """
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]
