"""The adapted layer: a frozen linear map plus low-rank updates, with one expert for each row of the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.fused import is_fusible, linear_and_update
from ttmoe.quantization import is_quantised
from ttmoe.row_dropout import dropout_by_row, shared_key
from ttmoe.transfer import to_device


@dataclass
class Update:
    """The low-rank factors that one role of a layer applies to one batch.

    Attributes:
        a: A of each expert in the batch, (experts, r, in).
        b: B of each expert, (experts, out, r), already multiplied by the method's scaling.
        expert_index: Index into ``a`` and ``b`` for each row, (batch,), numbered in order of first appearance; None if
            the batch has a single expert.
        in_blocks: Whether every expert has the same number of rows, one after another.
        dropout: Dropout rate on the layer's input in training, or a tensor (experts,) if the experts' rates differ.
        dropout_keys: Key of each row for the dropout of this role and layer, (batch, 2); None draws at random.
    """

    a: Tensor
    b: Tensor
    expert_index: Tensor | None
    dropout: float | Tensor = 0.0
    dropout_keys: Tensor | None = None
    in_blocks: bool = False

    @property
    def has_dropout(self) -> bool:
        """Whether any expert has a dropout rate above zero."""
        return not isinstance(self.dropout, float) or self.dropout > 0

    def select(self, expert: int) -> Update:
        """Return the update of a single expert, for an input that all its rows share."""
        index = slice(expert, expert + 1)
        rate = self.dropout if isinstance(self.dropout, float) else float(self.dropout[expert])
        keys = self.dropout_keys
        if keys is not None:
            keys = shared_key(keys if self.expert_index is None else keys[self.expert_index == expert])
        return Update(self.a[index], self.b[index], None, rate, keys)

    def to(self, device: torch.device) -> Update:
        """Return the update with its tensors on another device."""
        moved: dict[str, Any] = {
            key: to_device(value, device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


class AdaptedLinear(nn.Module):
    """A frozen ``nn.Linear`` or ``Conv1D`` that adds ``B A x`` to its output, or to parts of its output.

    Attributes:
        inner: The frozen map. Without updates the layer's output is bitwise that of ``inner``.
        parts: Output features of each role that can be adapted (more than one role in a fused projection).
        updates: Update of each role for the current batch, set by the bank before a forward pass.
    """

    def __init__(self, inner: nn.Module, computes_in: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = inner
        self._computes_in = computes_in
        self.parts: dict[str, slice | Tensor] = {}
        self.updates: dict[str, Update] = {}

    @property
    def weight(self) -> Tensor:
        """The frozen weight. Some architectures read it to choose a dtype."""
        return self.inner.weight  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the updates: that of the frozen weight, or of the model if the weight is quantised."""
        return self._computes_in if is_quantised(self.weight) else self.weight.dtype

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.inner.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Map x (batch, ..., in) to (batch, ..., out)."""
        if len(self.updates) == 1:
            ((role, update),) = self.updates.items()
            part = self.parts[role]
            if isinstance(part, slice) and not (self.training and update.has_dropout) and is_fusible(self.inner, x):
                return linear_and_update(x, self.inner, *_factors_for(x, update), part)  # type: ignore[arg-type]
        y = self.inner(x)
        for role, update in self.updates.items():
            y = _add(y, apply_update(x, update, self.training), self._part(role, y.device))
        return y

    def _part(self, role: str, device: torch.device) -> slice | Tensor:
        part = self.parts[role]
        if isinstance(part, Tensor) and part.device != device:
            part = self.parts[role] = to_device(part, device)  # stored, so that later passes copy nothing
        return part


def apply_update(x: Tensor, update: Update, training: bool) -> Tensor:
    """Return ``B A x`` with each row's own expert, as two thin matrix products.

    Args:
        x: Input (batch, ..., in). Batch and tokens may be flattened into one dimension, rows in order.
        update: Factors and the expert of each row.
        training: Whether to apply dropout to ``x``.

    Returns:
        (batch, ..., out).

    Raises:
        ValueError: If the batch has several experts and the first dimension of ``x`` is not a multiple of its rows.
    """
    if update.expert_index is None:
        if training and update.has_dropout:
            x = _dropout(x, update)
        return F.linear(F.linear(x, update.a[0]), update.b[0])
    a, bt = _factors_for(x, update)
    # Some architectures flatten (batch, tokens) before a projection; the rows of the batch stay in order.
    rows = x
    if training and update.has_dropout:
        rows = _dropout(x.reshape(len(update.expert_index), -1, x.shape[-1]), update)
    rows = rows.reshape(len(a), -1, x.shape[-1])
    return torch.bmm(torch.bmm(rows, a.mT), bt).reshape(*x.shape[:-1], bt.shape[-1])


def _factors_for(x: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """Return A (n, r, in) and B transposed (n, r, out), each for an equal share of the rows of the batch, in order.

    n is 1 for a single expert, the number of experts if their rows are in blocks, else the number of rows.
    """
    a, bt, index = update.a, update.b.mT, update.expert_index
    if index is None:
        return a, bt
    if x.shape[0] % len(index):
        raise ValueError(f"an adapted layer received {x.shape[0]} rows for a batch of {len(index)}: the architecture "
                         "shares this input between rows, but each row needs its own expert")  # fmt: skip
    if update.in_blocks:
        return a, bt
    return a.index_select(0, index), bt.index_select(0, index)


def _dropout(x: Tensor, update: Update) -> Tensor:
    """Apply dropout to x (batch, ..., in), each row at its expert's rate."""
    rates, keys = update.dropout, update.dropout_keys
    if not isinstance(rates, float):
        rates = rates[update.expert_index]
    if keys is not None and len(x) % len(keys):  # of a single expert, which rows of the batch share
        keys = shared_key(keys)
    rows = x.reshape(len(x) if keys is None else len(keys), -1, x.shape[-1])
    return dropout_by_row(rows, rates, keys).reshape(x.shape)


def _add(y: Tensor, delta: Tensor, part: slice | Tensor) -> Tensor:
    if isinstance(part, Tensor):
        return y.index_add(-1, part, delta)
    if delta.shape[-1] == y.shape[-1]:
        return y + delta
    return y + F.pad(delta, (part.start, y.shape[-1] - part.stop))


def linear_size(module: nn.Module) -> tuple[int, int] | None:
    """Return (in_features, out_features) of an ``nn.Linear``, GPT-2 ``Conv1D`` or ``AdaptedLinear``, else None."""
    if isinstance(module, AdaptedLinear):
        return linear_size(module.inner)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":  # its weight is stored (in, out)
        return module.weight.shape[0], module.weight.shape[1]  # type: ignore[union-attr, index, return-value]
    return None
