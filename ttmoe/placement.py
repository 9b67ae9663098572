"""Where the weights of a base go that is loaded whole: on one device, or layer by layer on the GPUs of a machine."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ttmoe.errors import InputError
from ttmoe.layer import AdaptedLinear, linear_size
from ttmoe.quantization import BYTES, NOT_QUANTISED, is_quantised

# Share of a GPU's free memory for the base. The rest is for the language head, experts, batches, and keys and values.
BASE_SHARE = 0.85


def weight_bytes(model: nn.Module, dtype_bytes: int, quantize: str) -> int:
    """Return the bytes of the weights; of quantised ones, with the largest of them as a product dequantises it.

    Args:
        model: Body of a base, quantised already or not; it may be on the meta device.
        dtype_bytes: Bytes of a number of the base's dtype.
        quantize: ``none``, ``int8`` or ``nf4``.
    """
    tensors = [*model.parameters(), *model.buffers()]
    whole = sum(t.numel() * (dtype_bytes if t.is_floating_point() else t.element_size()) for t in tensors)
    if quantize == NOT_QUANTISED:
        return whole
    # The weights of a loaded base are quantised already; an adapted layer's are those of the map inside it.
    linears = [module.weight.numel() for module in model.modules()  # type: ignore[operator, union-attr]
               if linear_size(module) and not isinstance(module, AdaptedLinear)
               and not is_quantised(module.weight)]  # type: ignore[arg-type]  # fmt: skip
    saved, largest = sum(linears) * (dtype_bytes - BYTES[quantize]), max(linears, default=0)
    return whole - math.ceil(saved) + largest * dtype_bytes


def place_on_gpus(weights: int) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that put a base on GPUs: the first one, if it has room.

    Else its layers are divided among all GPUs that torch sees, one after another; a batch passes through them in order.

    Args:
        weights: Bytes of the base's weights.

    Raises:
        InputError: If the GPUs together have no room.
    """
    free = [int(torch.cuda.mem_get_info(gpu)[0] * BASE_SHARE) for gpu in range(torch.cuda.device_count())]
    if len(free) < 2 or weights <= free[0]:
        return {"device_map": {"": "cuda"}}
    if weights > sum(free):
        raise InputError(f"the base takes {weights / 1e9:.1f} GB; the {len(free)} GPUs have room for "
                         f"{sum(free) / 1e9:.1f} GB of weights", where="device",
                         fix="use more GPUs, set base.quantize, or use the CPU")  # fmt: skip
    return {"device_map": "auto", "max_memory": dict(enumerate(free))}


def require_on_gpus(model: nn.Module) -> None:
    """Raise InputError if layers of a divided base found no room on the GPUs and lie elsewhere."""
    places = getattr(model, "hf_device_map", {})
    if elsewhere := [name for name, place in places.items() if len(places) > 1 and place in ("cpu", "disk")]:
        raise InputError(f"the GPUs have no room for {', '.join(elsewhere[:3])} of the base", where="device",
                         fix="use more GPUs, set base.quantize, or use the CPU")  # fmt: skip
