"""Stack the factors of a batch's experts at every site that any of them adapts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.adapter import Adapter, Group
from ttmoe.layer import AdaptedLinear, Update
from ttmoe.row_dropout import keys_at
from ttmoe.targets import Site
from ttmoe.transfer import constant_on, to_device

Updates = dict[str, dict[str, Update]]
"""Maps each layer's path to the update of each role."""

StackedFactors = tuple[str, Sequence[Site], Tensor, Tensor, dict[int, float]]
"""A role, its sites, A (sites, experts, r, in), B transposed (sites, experts, r, out), and the experts' dropout rates
by their index."""

StackEntry = tuple[int, Group, Tensor, Tensor, float]
"""An expert's index in the batch, one of its groups, that group's A and B, and the expert's dropout rate."""


def stack_updates(
    adapters: Sequence[Adapter],
    layers: Mapping[str, AdaptedLinear],
    numbers: Sequence[int] | None,
    device: torch.device,
    dropout_keys: Tensor | None = None,
) -> Updates:
    """Return the updates that the layers apply for a batch of ``adapters``.

    The factors of all sites of one role and size are stacked with a few operations, in the base's dtype.

    Args:
        adapters: One adapter for each expert in the batch.
        layers: The adapted layers by path.
        numbers: Index into ``adapters`` for each row, in order of first appearance; None for a single adapter.
        device: Device of the adapters. Layers of a divided base may be on other devices, which then get copies.
        dropout_keys: Key of each row, (batch, 2); None draws at random.
    """
    alike = len(adapters) > 1 and all(adapter.groups is adapters[0].groups for adapter in adapters)
    trained = all(p.requires_grad for adapter in adapters for p in adapter.parameters())
    expert_index = None if numbers is None else constant_on(device, tuple(numbers))
    in_blocks = numbers is not None and _are_in_blocks(numbers, len(adapters))
    updates: Updates = {}
    for role, sites, a, bt, rates in (_joint_factors if alike and trained else _separate_factors)(adapters, layers):
        dropout = _dropout_rates(rates, len(adapters), a.device)
        # B is kept as the transposed view of a contiguous (r, out), with which products are faster. Unbinding, unlike
        # indexing, has a single backward operation for all layers.
        keys = _dropout_keys(sites, dropout, dropout_keys, a.device)
        for site, site_a, site_bt, site_keys in zip(sites, a.unbind(), bt.unbind(), keys, strict=True):
            update = Update(site_a, site_bt.mT, expert_index, dropout, site_keys, in_blocks)
            place = layers[site.path].weight.device
            updates.setdefault(site.path, {})[role] = update if place == a.device else update.to(place)
    return updates


def _joint_factors(adapters: Sequence[Adapter], layers: Mapping[str, AdaptedLinear]) -> Iterator[StackedFactors]:
    """Yield the factors of adapters of one form, built from their stacked cores: as many operations as for one."""
    rates = {expert: adapter.spec.dropout for expert, adapter in enumerate(adapters)}
    for group in adapters[0].groups:
        of_each = zip(*(adapter.cores_of(group) for adapter in adapters), strict=True)
        with torch.autocast(layers[group.sites[0].path].weight.device.type, enabled=False):
            a, b = group.method.factors([torch.stack(cores, 1) for cores in of_each])
            scalings = [group.method.scaling(adapter.spec.alpha) for adapter in adapters]
            alike = len(set(scalings)) == 1
            b = b * (scalings[0] if alike else constant_on(b.device, tuple(scalings)).reshape(-1, 1, 1))
        dtype = layers[group.sites[0].path].dtype
        yield group.role, group.sites, a.to(dtype), b.to(dtype).mT, rates


def _separate_factors(adapters: Sequence[Adapter], layers: Mapping[str, AdaptedLinear]) -> Iterator[StackedFactors]:
    """Yield the factors of adapters of any forms, stacked."""
    entries_of: dict[tuple[str, int, int], list[StackEntry]] = {}
    for expert, adapter in enumerate(adapters):
        dtype = layers[adapter.groups[0].sites[0].path].dtype  # cast before stacking: fewer bytes are moved
        for group, (a, b) in zip(adapter.groups, adapter.factors(dtype), strict=True):
            kind = (group.role, group.method.in_features, group.method.out_features)
            entries_of.setdefault(kind, []).append((expert, group, a, b, adapter.spec.dropout))
    for (role, _, _), entries in entries_of.items():
        sites = list({site.path: site for _, group, *_ in entries for site in group.sites}.values())
        if len(adapters) == 1:
            a, bt = entries[0][2].unsqueeze(1), entries[0][3].mT.unsqueeze(1)
        else:
            a, bt = _stack(entries, sites, len(adapters))
        yield role, sites, a, bt, {expert: rate for expert, *_, rate in entries}


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
    index = constant_on(factor.device, tuple(indexes))
    return factor.new_zeros(sites, *factor.shape[1:]).index_copy(0, index, factor)


def _dropout_rates(rates: Mapping[int, float], experts: int, device: torch.device) -> float | Tensor:
    """Return the experts' common dropout rate, or a tensor (experts,) if their rates differ."""
    if len(set(rates.values())) == 1:
        return float(next(iter(rates.values())))
    rates_in_order = [rates.get(expert, 0.0) for expert in range(experts)]
    return constant_on(device, tuple(rates_in_order), torch.float64)


def _dropout_keys(
    sites: Sequence[Site], dropout: float | Tensor, keys: Tensor | None, device: torch.device
) -> Sequence[Tensor | None]:
    """Return the keys of the rows at each site, None for sites without dropout or keys."""
    if keys is None or (isinstance(dropout, float) and not dropout):
        return [None] * len(sites)
    return keys_at([f"{site.path} {site.role}" for site in sites], to_device(keys, device)).unbind()


def _are_in_blocks(numbers: Sequence[int], experts: int) -> bool:
    """Return whether the rows of each expert follow each other, equally many of each."""
    rows, rest = divmod(len(numbers), experts)
    return not rest and all(number == row // rows for row, number in enumerate(numbers))
