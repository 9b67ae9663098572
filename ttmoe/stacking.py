"""The updates of one batch: the factors of its experts, stacked side by side at every site they act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.adapter import Adapter, Group
from ttmoe.layer import AdaptedLinear, Update
from ttmoe.targets import Site

Updates = dict[str, dict[str, Update]]
"""For each layer's path the update of each role."""

StackEntry = tuple[int, Group, Tensor, Tensor, float]
"""An expert's place in the batch, one of its groups, that group's A and B, and the expert's dropout."""


def updates_for(adapters: Sequence[Adapter], rows: Tensor | None, layers: Mapping[str, AdaptedLinear]) -> Updates:
    """What the layers add for a batch of ``adapters``, one expert each; ``rows`` as in ``Update``.

    Everything is stacked once for all the layers of a size, in the base's dtype.
    """
    kinds: dict[tuple[str, int, int], list[StackEntry]] = {}
    for place, adapter in enumerate(adapters):
        for group, (a, b) in zip(adapter.groups, adapter.factors(), strict=True):
            kind = (group.role, group.method.in_features, group.method.out_features)
            dtype = layers[group.sites[0].path].weight.dtype  # cast first: less is moved in stacking
            kinds.setdefault(kind, []).append((place, group, a.to(dtype), b.to(dtype), adapter.spec.dropout))
    updates: Updates = {}
    for (role, _, _), entries in kinds.items():
        sites = _sites(entries)
        if len(adapters) == 1:
            a, bt = entries[0][2].unsqueeze(1), entries[0][3].mT.unsqueeze(1)
        else:
            a, bt = _stack(entries, sites, len(adapters))
        dropout = _dropout(entries, len(adapters), a.device)
        # B is kept as the transposed view of (r, out): products with it are quicker so. And unbinding, unlike
        # indexing, has one backward for all layers.
        for site, a_here, bt_here in zip(sites, a.unbind(), bt.unbind(), strict=True):
            updates.setdefault(site.path, {})[role] = Update(a_here, bt_here.mT, rows, dropout)
    return updates


def _sites(entries: Sequence[StackEntry]) -> list[Site]:
    """The sites of any of the experts."""
    return list({site.path: site for _, group, *_ in entries for site in group.sites}.values())


def _stack(entries: Sequence[StackEntry], sites: Sequence[Site], count: int) -> tuple[Tensor, Tensor]:
    """A (sites, experts, r, in) and B transposed (sites, experts, r, out).

    Lower ranks, sites that an expert does not act on and experts without any of these sites are filled with zeros.
    """
    rank = max(a.shape[1] for _, _, a, _, _ in entries)
    place_of = {site.path: i for i, site in enumerate(sites)}
    filled: dict[int, tuple[Tensor, Tensor]] = {}
    for place, group, a, b, _ in entries:
        where = [place_of[site.path] for site in group.sites]
        filled[place] = (_fill(a, where, len(sites), rank), _fill(b.mT, where, len(sites), rank))
    zeros = tuple(x.new_zeros(len(sites), rank, x.shape[-1]) for x in filled[entries[0][0]])
    pairs = [filled.get(place, zeros) for place in range(count)]
    return torch.stack([pair[0] for pair in pairs], 1), torch.stack([pair[1] for pair in pairs], 1)


def _fill(factor: Tensor, where: list[int], sites: int, rank: int) -> Tensor:
    """(own sites, own rank, width) -> (sites, rank, width)."""
    if factor.shape[1] < rank:
        factor = F.pad(factor, (0, 0, 0, rank - factor.shape[1]))
    if where == list(range(sites)):
        return factor
    index = torch.tensor(where, device=factor.device)
    return factor.new_zeros(sites, *factor.shape[1:]).index_copy(0, index, factor)


def _dropout(entries: Sequence[StackEntry], count: int, device: torch.device) -> float | Tensor:
    """The experts' rate, or (experts,) rates where they differ."""
    rates = {place: rate for place, *_, rate in entries}
    first = entries[0][4]
    if set(rates.values()) == {first}:
        return float(first)
    return torch.tensor([rates.get(place, 0.0) for place in range(count)], device=device)
