"""A frozen linear map and one low-rank update in one autograd function.

Applied one after the other, the map and the update allocate two more tensors of the output's size in the forward pass
and two of the input's size in the backward pass, which costs more than the thin products themselves. Here both products
are accumulated in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def is_fusible(inner: nn.Module, x: Tensor) -> bool:
    """Return whether ``inner`` can be replaced by a product with its weight: a plain frozen ``nn.Linear`` of x's dtype.

    Hooks (ZeRO-3 gathers the weight in one), a replaced ``forward`` (offloading replaces it) and autocast all change
    what a call of the module computes, so any of them makes it False. The weight is read last: in a forward pass,
    reading one that ZeRO-3 divides gathers it, and it would stay whole after the backward pass.
    """
    return (type(inner) is nn.Linear and "forward" not in vars(inner)
            and not (inner._forward_hooks or inner._forward_pre_hooks or inner._backward_hooks)
            and not inner._backward_pre_hooks and not torch.is_autocast_enabled(x.device.type)
            and inner.weight.dtype == x.dtype and not any(p.requires_grad for p in inner.parameters()))  # fmt: skip


def linear_and_update(x: Tensor, inner: nn.Linear, a: Tensor, bt: Tensor, part: slice) -> Tensor:
    """Return ``W x + bias`` with ``B A x`` added on the output features ``part``.

    Gradients flow to ``x``, ``a`` and ``bt``, not to ``inner``.

    Args:
        x: Input (batch, ..., in).
        inner: The frozen map, for which ``is_fusible`` is True.
        a: A (n, r, in), each for an equal share of the rows, in order.
        bt: B transposed, (n, r, width of ``part``).
        part: Output features that receive the update.

    Returns:
        (batch, ..., out).
    """
    return _LinearAndUpdate.apply(x, inner.weight, inner.bias, a, bt, part)  # type: ignore[no-any-return]


class _LinearAndUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, bt: Tensor, part: slice) -> Tensor:
        y = F.linear(x, weight, bias)
        inner = _product(_by_factor(x, a), a.mT)
        _add_product(_by_factor(y, a)[..., part], inner, bt)
        ctx.save_for_backward(x, weight, a, bt, inner)
        ctx.part = part
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, a, bt, inner = ctx.saved_tensors
        grad_part = _by_factor(grad, a)[..., ctx.part]
        grad_inner = _product(grad_part, bt.mT)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            _add_product(_by_factor(grad_x, a), grad_inner, a)
        grad_a = _product(grad_inner.mT, _by_factor(x, a)) if ctx.needs_input_grad[3] else None
        grad_bt = _product(inner.mT, grad_part) if ctx.needs_input_grad[4] else None
        return grad_x, None, None, grad_a, grad_bt, None


def _by_factor(x: Tensor, a: Tensor) -> Tensor:
    """Reshape x (batch, ..., width) to (n, tokens, width), one slice for each factor of ``a`` (n, r, in)."""
    return x.reshape(len(a), -1, x.shape[-1])


def _product(left: Tensor, right: Tensor) -> Tensor:
    return (left[0] @ right[0])[None] if len(left) == 1 else torch.bmm(left, right)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to ``total`` in place."""
    if len(total) == 1:
        total[0].addmm_(left[0], right[0])
    else:
        total.baddbmm_(left, right)
