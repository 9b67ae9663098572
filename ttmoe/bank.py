"""The bank: experts loaded together on one frozen base; each row of a batch goes through its own expert.

Training one expert, training several at once and serving a mixed batch are this one computation. Its cost follows the
work in the batch, not the number of experts that are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.adapter import Adapter, AdapterSpec, plan_groups
from ttmoe.encoding import pool
from ttmoe.errors import InputError
from ttmoe.layer import AdaptedLinear, Update


class Expert(nn.Module):
    """What one task adds to the base: an adapter, and a linear head (width -> classes) on the pooled top states."""

    def __init__(self, adapter: Adapter, head: nn.Linear) -> None:
        super().__init__()
        self.adapter, self.head = adapter, head


class Bank(nn.Module):
    """A frozen base and the experts on it.

    ``model`` is a transformers body (``AutoModel``); its parameters are frozen here. ``pooling`` is ``mean`` or
    ``last``. Experts are added and removed at run time; no other expert's output changes by a bit.
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.pooling = pooling
        self.experts = nn.ModuleDict()
        self._layers: dict[str, AdaptedLinear] = {}

    @property
    def width(self) -> int:
        """The size of the base's hidden states."""
        return self.model.config.hidden_size  # type: ignore[union-attr, return-value]

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return next(self.model.parameters()).device

    def add(self, name: str, spec: AdapterSpec, classes: int, generator: torch.Generator | None = None,
            *, random_head: bool = False) -> Expert:  # fmt: skip
        """A new expert, its cores and head drawn from ``generator`` (without one: unset, for weights to be loaded into).

        ``classes`` is the head's number of outputs (1 for multiple choice: one score an option). It starts at
        zero, which trains best; a head that will stay frozen needs ``random_head``. Raises InputError for a name that
        is taken, or an adapter that does not fit the base.
        """
        if name in self.experts:
            raise InputError(f"an expert named {name!r} is loaded already", where="bank", fix="remove it first")
        adapter = Adapter(plan_groups(self.model, spec), spec, generator)
        head = nn.utils.skip_init(nn.Linear, self.width, classes)
        if generator is not None:
            nn.init.normal_(head.weight, std=self.width**-0.5 if random_head else 0.0, generator=generator)
            nn.init.zeros_(head.bias)
        expert = Expert(adapter, head).to(self.device)
        for group in adapter.groups:
            for site in group.sites:
                self._wrap(site.path).parts[site.role] = site.rows
        self.experts[name] = expert
        return expert

    def remove(self, name: str) -> None:
        """Forget an expert."""
        del self.experts[name]

    def features(self, inputs: dict[str, Tensor], names: Sequence[str] | str) -> Tensor:
        """Pooled top states (rows, width), fp32, each row through the expert named for it (one name: all rows)."""
        with self.active(names):
            states = self.model(**inputs).last_hidden_state
        return pool(states, inputs["attention_mask"], self.pooling)

    def forward(self, inputs: dict[str, Tensor], names: Sequence[str] | str) -> Tensor:
        """Scores (rows, most classes of any expert in the batch), fp32; columns that an expert lacks are -inf."""
        features = self.features(inputs, names)
        if isinstance(names, str):
            return self.experts[names].head(features)
        order, rows = _distinct(names)
        heads = [self.experts[name].head for name in order]
        most = max(head.out_features for head in heads)
        weight = torch.stack([F.pad(h.weight, (0, 0, 0, most - h.out_features)) for h in heads])
        bias = torch.stack([F.pad(h.bias, (0, most - h.out_features), value=float("-inf")) for h in heads])
        index = rows.to(features.device)
        return torch.bmm(weight[index], features.unsqueeze(-1)).squeeze(-1) + bias[index]

    @contextmanager
    def active(self, names: Sequence[str] | str) -> Iterator[None]:
        """Within this context the base answers through the named experts. Gradients flow into their cores."""
        order, rows = ([names], None) if isinstance(names, str) else _distinct(names)
        missing = [name for name in order if name not in self.experts]
        if missing:
            raise InputError(f"no expert named {missing[0]!r} is loaded", where="bank",
                             fix=f"loaded: {', '.join(self.experts) or 'none'}")  # fmt: skip
        try:
            self._set(order, rows.to(self.device) if rows is not None and len(order) > 1 else None)
            yield
        finally:
            self._clear()

    def _set(self, order: list[str], rows: Tensor | None) -> None:
        gathered: dict[tuple[str, str], list[tuple[int, Tensor, Tensor, float]]] = {}
        for position, name in enumerate(order):
            adapter: Adapter = self.experts[name].adapter  # type: ignore[assignment]
            for group, (a, b) in zip(adapter.groups, adapter.factors(), strict=True):
                for i, site in enumerate(group.sites):
                    entry = (position, a[i], b[i], adapter.spec.dropout)
                    gathered.setdefault((site.path, site.role), []).append(entry)
        for (path, role), entries in gathered.items():
            layer = self._layers[path]
            layer.updates[role] = _stack(entries, len(order), rows, layer.weight.dtype)

    def _clear(self) -> None:
        for layer in self._layers.values():
            layer.updates = {}

    def _wrap(self, path: str) -> AdaptedLinear:
        if path not in self._layers:
            parent, _, child = path.rpartition(".")
            layer = AdaptedLinear(self.model.get_submodule(path))
            setattr(self.model.get_submodule(parent), child, layer)
            self._layers[path] = layer
        return self._layers[path]


def _distinct(names: Sequence[str]) -> tuple[list[str], Tensor]:
    """The different names in order of first appearance, and each row's position among them."""
    order = list(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(order)}
    return order, torch.tensor([place[name] for name in names])


def _stack(entries: list[tuple[int, Tensor, Tensor, float]], count: int, rows: Tensor | None, dtype: torch.dtype) -> Update:
    """One update for all experts of a batch; lower ranks, and experts without this site, are filled with zeros."""
    rank = max(a.shape[0] for _, a, _, _ in entries)
    filled: list[tuple[Tensor, Tensor] | None] = [None] * count
    for position, a, b, _ in entries:
        filled[position] = (F.pad(a, (0, 0, 0, rank - a.shape[0])), F.pad(b, (0, rank - b.shape[1])))
    _, a0, b0, _ = entries[0]
    zeros = (a0.new_zeros(rank, a0.shape[1]), b0.new_zeros(b0.shape[0], rank))
    pairs = [pair or zeros for pair in filled]
    a = torch.stack([pair[0] for pair in pairs]).to(dtype)
    b = torch.stack([pair[1] for pair in pairs]).to(dtype)
    return Update(a, b, rows, max(drop for *_, drop in entries))
