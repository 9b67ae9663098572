"""Find where a computation makes the host wait for the device, on a machine without a GPU.

The tensors of the model are on torch's device ``meta``, which has no values: what reads one on the host fails. A copy
to the device that waits does not fail, so each copy is looked at.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class NoWaiting(TorchDispatchMode):
    """Within this context a copy between host and device raises AssertionError if the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _COPIES:
            given = [value.device for value in tree_leaves(args) if isinstance(value, Tensor) and value.ndim]
            if len({*given, made.device}) > 1:
                self.copies += 1
                waits = not (kwargs or {}).get("non_blocking") and not (len(args) > 2 and args[2])
                assert not waits, f"{func} from {given} to {made.device} makes the host wait"
        return made


def on_meta(model: nn.Module, patch: pytest.MonkeyPatch) -> nn.Module:
    """Return the model on the device ``meta``, for which torch knows no autocast."""
    patch.setattr(torch, "autocast", lambda device_type, *args, **more: nullcontext())
    patch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    return model.to(META)
