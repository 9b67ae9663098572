"""Bases whose linear maps are quantised when they are loaded, through transformers and bitsandbytes.

Adapters, heads, embeddings and norms stay as they are; a product dequantises the weights that it reads. bitsandbytes is
used because it has both formats, trains through them, and runs on CPUs too.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from typing import TYPE_CHECKING, Any

from ttmoe.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

NOT_QUANTISED = "none"
# Bytes of a quantised number with its share of the scales: int8 has one scale for each output of a map, nf4 one in fp32
# for each block of 64 numbers.
BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}


def quantization_arguments(quantize: str, dtype: str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that quantise a base; none for a base that is not quantised.

    ``int8`` is LLM.int8 (Dettmers et al., arXiv 2208.07339), ``nf4`` the 4-bit NormalFloat of QLoRA (Dettmers et al.,
    arXiv 2305.14314).

    Args:
        quantize: ``none``, ``int8`` or ``nf4``.
        dtype: Name of the base's dtype, in which products are computed.

    Raises:
        InputError: If bitsandbytes is not installed.
    """
    if quantize == NOT_QUANTISED:
        return {}
    require_quantization(quantize)
    import torch
    from transformers import BitsAndBytesConfig

    # On a CPU it warns in every product that inputs are cast to half precision, and that a faster kernel is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                bnb_4bit_compute_dtype=getattr(torch, dtype))  # fmt: skip
    return {"quantization_config": config}


def keep_trainable(model: nn.Module) -> None:
    """Keep the weights of a quantised model in the format through which gradients flow.

    Where a CPU computes in bfloat16, bitsandbytes packs a 4-bit weight for inference in the first pass without
    gradients, and never unpacks it: later trainings would silently get no gradient through it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def require_quantization(quantize: str) -> None:
    """Raise InputError if bases cannot be quantised here."""
    if quantize != NOT_QUANTISED and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{quantize} needs bitsandbytes, which is not installed", where="base.quantize",
                         fix="pip install 'ttmoe[quantize]' on every node, or set base.quantize to none")  # fmt: skip


def float_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype in which a model computes: that of the weights that are not quantised."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def count_numbers(weight: torch.Tensor) -> int:
    """Return how many numbers a weight has; one of 4 bits is stored with two numbers in a byte."""
    state = getattr(weight, "quant_state", None)
    return math.prod(weight.shape if state is None else state.shape)


def is_quantised(weight: torch.Tensor) -> bool:
    """Return whether the weight of a linear map is quantised."""
    return not weight.is_floating_point()
