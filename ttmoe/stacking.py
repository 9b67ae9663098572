"""Stack the factors of a batch's experts at every site that any of them adapts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.adapter import Adapter, Group
from ttmoe.layer import AdaptedLinear, Update
from ttmoe.row_dropout import keys_at
from ttmoe.targets import Site

Updates = dict[str, dict[str, Update]]
"""Maps each layer's path to the update of each role."""

StackEntry = tuple[int, Group, Tensor, Tensor, float]
"""An expert's index in the batch, one of its groups, that group's A and B, and the expert's dropout rate."""


def stack_updates(
    adapters: Sequence[Adapter],
    expert_index: Tensor | None,
    layers: Mapping[str, AdaptedLinear],
    dropout_keys: Tensor | None = None,
) -> Updates:
    """Return the updates that the layers apply for a batch of ``adapters``.

    The factors of all sites of one role and size are stacked with a few operations, in the base's dtype.

    Args:
        adapters: One adapter for each expert in the batch.
        expert_index: Index into ``adapters`` for each row, (batch,); None for a single adapter.
        layers: The adapted layers by path.
        dropout_keys: Key of each row, (batch, 2), on the CPU; None draws at random.
    """
    entries_of: dict[tuple[str, int, int], list[StackEntry]] = {}
    for expert, adapter in enumerate(adapters):
        for group, (a, b) in zip(adapter.groups, adapter.factors(), strict=True):
            kind = (group.role, group.method.in_features, group.method.out_features)
            dtype = layers[group.sites[0].path].weight.dtype  # cast before stacking: fewer bytes are moved
            entries_of.setdefault(kind, []).append((expert, group, a.to(dtype), b.to(dtype), adapter.spec.dropout))
    updates: Updates = {}
    for (role, _, _), entries in entries_of.items():
        sites = list({site.path: site for _, group, *_ in entries for site in group.sites}.values())
        if len(adapters) == 1:
            a, bt = entries[0][2].unsqueeze(1), entries[0][3].mT.unsqueeze(1)
        else:
            a, bt = _stack(entries, sites, len(adapters))
        dropout = _dropout_rates(entries, len(adapters), a.device)
        # B is kept as the transposed view of a contiguous (r, out), with which products are faster. Unbinding, unlike
        # indexing, has a single backward operation for all layers.
        keys = _dropout_keys(sites, dropout, dropout_keys, a.device)
        for site, site_a, site_bt, site_keys in zip(sites, a.unbind(), bt.unbind(), keys, strict=True):
            updates.setdefault(site.path, {})[role] = Update(site_a, site_bt.mT, expert_index, dropout, site_keys)
    return updates


def _stack(entries: Sequence[StackEntry], sites: Sequence[Site], experts: int) -> tuple[Tensor, Tensor]:
    """Return A (sites, experts, r, in) and B transposed (sites, experts, r, out).

    Lower ranks, sites that an expert does not adapt, and experts that adapt none of the sites are filled with zeros.
    """
    rank = max(a.shape[1] for _, _, a, _, _ in entries)
    index_of = {site.path: i for i, site in enumerate(sites)}
    filled: dict[int, tuple[Tensor, Tensor]] = {}
    for expert, group, a, b, _ in entries:
        indexes = [index_of[site.path] for site in group.sites]
        filled[expert] = (_fill(a, indexes, len(sites), rank), _fill(b.mT, indexes, len(sites), rank))
    zeros = tuple(x.new_zeros(len(sites), rank, x.shape[-1]) for x in filled[entries[0][0]])
    pairs = [filled.get(expert, zeros) for expert in range(experts)]
    return torch.stack([pair[0] for pair in pairs], 1), torch.stack([pair[1] for pair in pairs], 1)


def _fill(factor: Tensor, indexes: list[int], sites: int, rank: int) -> Tensor:
    """Expand a factor (expert's sites, expert's rank, width) to (sites, rank, width) with zeros."""
    if factor.shape[1] < rank:
        factor = F.pad(factor, (0, 0, 0, rank - factor.shape[1]))
    if indexes == list(range(sites)):
        return factor
    index = torch.tensor(indexes, device=factor.device)
    return factor.new_zeros(sites, *factor.shape[1:]).index_copy(0, index, factor)


def _dropout_rates(entries: Sequence[StackEntry], experts: int, device: torch.device) -> float | Tensor:
    """Return the experts' common dropout rate, or a tensor (experts,) if their rates differ."""
    rates = {expert: rate for expert, *_, rate in entries}
    first = entries[0][4]
    if set(rates.values()) == {first}:
        return float(first)
    rates_in_order = [rates.get(expert, 0.0) for expert in range(experts)]
    return torch.tensor(rates_in_order, dtype=torch.float64, device=device)


def _dropout_keys(
    sites: Sequence[Site], dropout: float | Tensor, keys: Tensor | None, device: torch.device
) -> Sequence[Tensor | None]:
    """Return the keys of the rows at each site, None for sites without dropout or keys."""
    if keys is None or (isinstance(dropout, float) and not dropout):
        return [None] * len(sites)
    return keys_at([f"{site.path} {site.role}" for site in sites], keys).to(device).unbind()
