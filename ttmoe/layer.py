"""The one adapted layer: a frozen linear map plus low-rank updates, one expert for each row of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Update:
    """The factors that are active at one site for one batch.

    ``a`` (experts, r, in) and ``b`` (experts, out, r), the scale already in ``b``; ``rows`` (batch,) says which of
    the stacked experts each row goes through, and is None where there is only one.
    """

    a: Tensor
    b: Tensor
    rows: Tensor | None
    dropout: float = 0.0


class AdaptedLinear(nn.Module):
    """A frozen ``nn.Linear`` or ``Conv1D`` whose output, or parts of it, get ``B A x`` added.

    ``parts`` names the output features of each role that can be adapted here (more than one in a fused projection).
    The bank sets ``updates`` before a forward pass; with none set the layer is the frozen map, bit for bit.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.parts: dict[str, slice | Tensor] = {}
        self.updates: dict[str, Update] = {}

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some architectures read it to learn a dtype."""
        return self.inner.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.inner.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, ..., in) -> (batch, ..., out)."""
        y = self.inner(x)
        for role, update in self.updates.items():
            y = _add(y, low_rank(x, update, self.training), self.parts[role])
        return y


def low_rank(x: Tensor, update: Update, training: bool) -> Tensor:
    """``B A x`` for every row through its own expert: two thin products, x (batch, ..., in) -> (batch, ..., out)."""
    if update.dropout and training:
        x = F.dropout(x, update.dropout)
    if update.rows is None:
        return F.linear(F.linear(x, update.a[0]), update.b[0])
    a, b = update.a[update.rows], update.b[update.rows]
    # Some architectures flatten (batch, tokens) before a projection; the rows of the batch stay in order.
    inner = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.mT)
    return torch.bmm(inner, b.mT).reshape(*x.shape[:-1], b.shape[1])


def _add(y: Tensor, delta: Tensor, part: slice | Tensor) -> Tensor:
    if isinstance(part, Tensor):
        return y.index_add(-1, part.to(y.device), delta)
    if delta.shape[-1] == y.shape[-1]:
        return y + delta
    return y + F.pad(delta, (part.start, y.shape[-1] - part.stop))


def linear_size(module: nn.Module) -> tuple[int, int] | None:
    """(in_features, out_features) of an ``nn.Linear``, a GPT-2 ``Conv1D`` or an adapted one; None for anything else."""
    if isinstance(module, AdaptedLinear):
        return linear_size(module.inner)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":  # its weight is stored (in, out)
        return module.weight.shape[0], module.weight.shape[1]  # type: ignore[union-attr, index, return-value]
    return None
