"""A frozen linear map and one update of it in one pass, where nothing stands in between.

Added one after the other, map and update cost two more tensors as large as the output in the forward, and two as large
as the input in the backward: more than the thin products themselves. Here both products add to what is there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fusible(inner: nn.Module, x: Tensor) -> bool:
    """Whether ``inner`` is a plain frozen map of x's dtype that may be taken by its weight.

    A hook (ZeRO-3 gathers the weight in one), a forward that was put in its place (offloading does that) and autocast
    all change what calling the module does.
    """
    return (type(inner) is nn.Linear and inner.weight.dtype == x.dtype
            and not any(p.requires_grad for p in inner.parameters()) and "forward" not in vars(inner)
            and not (inner._forward_hooks or inner._forward_pre_hooks or inner._backward_hooks)
            and not inner._backward_pre_hooks and not torch.is_autocast_enabled(x.device.type))  # fmt: skip


def linear_and_update(x: Tensor, inner: nn.Linear, a: Tensor, bt: Tensor, part: slice) -> Tensor:
    """``W x + bias``, and ``B A x`` on the output features ``part``; x (batch, ..., in) -> (batch, ..., out).

    ``a`` (n, r, in) and B transposed ``bt`` (n, r, out of the part): one for all rows, or one for each row.
    """
    return _LinearAndUpdate.apply(x, inner.weight, inner.bias, a, bt, part)  # type: ignore[no-any-return]


class _LinearAndUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, bt: Tensor, part: slice) -> Tensor:
        y = F.linear(x, weight, bias)
        inner = _product(_rows(x, a), a.mT)
        _add_product(_rows(y, a)[..., part], inner, bt)
        ctx.save_for_backward(x, weight, a, bt, inner)
        ctx.part = part
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, a, bt, inner = ctx.saved_tensors
        grad_part = _rows(grad, a)[..., ctx.part]
        grad_inner = _product(grad_part, bt.mT)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            _add_product(_rows(grad_x, a), grad_inner, a)
        grad_a = _product(grad_inner.mT, _rows(x, a)) if ctx.needs_input_grad[3] else None
        grad_bt = _product(inner.mT, grad_part) if ctx.needs_input_grad[4] else None
        return grad_x, None, None, grad_a, grad_bt, None


def _rows(x: Tensor, a: Tensor) -> Tensor:
    """X (batch, ..., width) as (n, tokens, width), a piece for each of the factors ``a``."""
    return x.reshape(len(a), -1, x.shape[-1])


def _product(left: Tensor, right: Tensor) -> Tensor:
    return (left[0] @ right[0])[None] if len(left) == 1 else torch.bmm(left, right)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to ``total``, in place."""
    if len(total) == 1:
        total[0].addmm_(left[0], right[0])
    else:
        total.baddbmm_(left, right)
