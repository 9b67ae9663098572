"""The one adapted layer: a frozen linear map plus low-rank updates, one expert for each row of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.fused import fusible, linear_and_update
from ttmoe.row_dropout import drop_rows


@dataclass
class Update:
    """The factors that are active at one site for one batch.

    ``a`` (experts, r, in) and ``b`` (experts, out, r), the scale already in ``b``; ``rows`` (batch,) says which of
    the stacked experts each row goes through, in order of first appearance, and is None where there is only one.
    ``dropout`` is one rate, or a tensor (experts,) where the experts differ.
    """

    a: Tensor
    b: Tensor
    rows: Tensor | None
    dropout: float | Tensor = 0.0

    @property
    def drops(self) -> bool:
        """Whether there is dropout in training."""
        return not isinstance(self.dropout, float) or self.dropout > 0

    def only(self, expert: int) -> Update:
        """The same for one of the stacked experts alone."""
        one = slice(expert, expert + 1)
        rate = self.dropout if isinstance(self.dropout, float) else float(self.dropout[expert])
        return Update(self.a[one], self.b[one], None, rate)


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
        """X (batch, ..., in) -> (batch, ..., out)."""
        if len(self.updates) == 1:
            ((role, update),) = self.updates.items()
            part = self.parts[role]
            if isinstance(part, slice) and not (self.training and update.drops) and fusible(self.inner, x):
                return linear_and_update(x, self.inner, *rows_factors(x, update), part)  # type: ignore[arg-type]
        y = self.inner(x)
        for role, update in self.updates.items():
            y = _add(y, low_rank(x, update, self.training), self._part(role, y.device))
        return y

    def _part(self, role: str, device: torch.device) -> slice | Tensor:
        """The role's output features; an index goes to the device once, not in every pass."""
        part = self.parts[role]
        if isinstance(part, Tensor) and part.device != device:
            part = self.parts[role] = part.to(device)
        return part


def low_rank(x: Tensor, update: Update, training: bool) -> Tensor:
    """``B A x`` for every row through its own expert: two thin products, x (batch, ..., in) -> (batch, ..., out).

    Raises ValueError for a mixed batch whose rows cannot be told apart in ``x``.
    """
    if update.rows is None:
        if training and update.dropout:
            x = F.dropout(x, float(update.dropout))
        return F.linear(F.linear(x, update.a[0]), update.b[0])
    a, bt = rows_factors(x, update)
    # Some architectures flatten (batch, tokens) before a projection; the rows of the batch stay in order.
    rows = x.reshape(len(a), -1, x.shape[-1])
    if training:
        rows = _drop(rows, update)
    return torch.bmm(torch.bmm(rows, a.mT), bt).reshape(*x.shape[:-1], bt.shape[-1])


def rows_factors(x: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """A (n, r, in) and B transposed (n, r, out): one for all rows of x, or one for each row of the batch.

    Raises ValueError for a mixed batch whose rows cannot be told apart in ``x``.
    """
    a, bt, index = update.a, update.b.mT, update.rows
    if index is None:
        return a, bt
    if x.shape[0] % len(index):
        raise ValueError(f"{x.shape[0]} rows reach an adapted layer in a batch of {len(index)}: the architecture "
                         "shares this input between rows, which each need their own expert")  # fmt: skip
    if len(a) == len(index):  # each row has an expert of its own, and they stand in order
        return a, bt
    return a.index_select(0, index), bt.index_select(0, index)


def _drop(x: Tensor, update: Update) -> Tensor:
    """Dropout of x (batch, tokens, in), each row at its expert's rate."""
    if isinstance(update.dropout, float):
        return F.dropout(x, update.dropout) if update.dropout else x
    return drop_rows(x, update.dropout[update.rows])


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
