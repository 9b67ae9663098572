"""The choices of the factors of one width, with the number of parameters of every option."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from operator import itemgetter, mul

from ttmoe.adapter import Group
from ttmoe.factorisation import factorisations
from ttmoe.shapes import TTShape


@dataclass(frozen=True)
class FactorChoice:
    """One choice of factors: of the input width, or of the output width, of all maps that have this width.

    Attributes:
        name: Name of the choice, such as ``inputs.384.2`` for two factors of the input width 384.
        width: The width.
        count: Number of factors.
        is_input: Whether it is the input width.
        others: The width of the other side and the number of sites, for each group of maps.
        every: Whether all factors in every order are options, and not the most balanced ones alone.
    """

    name: str
    width: int
    count: int
    is_input: bool
    others: tuple[tuple[int, int], ...]
    every: bool
    _sizes: dict[int, dict[str, int]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The options as in ``16x24``; empty if the width has no such factorisation."""
        return _orders(self.width, self.count) if self.every else _most_balanced(self.width, self.count, self.is_input)

    def sizes(self, rank: int) -> dict[str, int]:
        """Return the number of values in the cores of each option's factors, in all sites; the smallest first."""
        if rank not in self._sizes:
            of_maps = [_side_parameters(self.options, other, rank, self.is_input) for other, _ in self.others]
            sites = [count for _, count in self.others]
            totals = [sum(map(mul, sites, each)) for each in zip(*of_maps, strict=True)]
            self._sizes[rank] = dict(sorted(zip(self.options, totals, strict=True), key=itemgetter(1)))
        return self._sizes[rank]

    def fewest(self, rank: int) -> int:
        """Return the number of parameters of the smallest option."""
        return next(iter(self.sizes(rank).values()))

    def belongs_to(self, group: Group) -> bool:
        """Return whether the choice is one for the maps of a group."""
        return self.width == (group.method.in_features if self.is_input else group.method.out_features)


def factor_choices(groups: Iterable[Group], pair: str, every: bool, suffix: str = "") -> tuple[FactorChoice, ...]:
    """Return the choices of factors of the maps of some groups; those with the same width share one.

    Args:
        groups: The groups.
        pair: Numbers of input and output factors, as in ``2+3``.
        every: As in ``FactorChoice``.
        suffix: What the names have in place of the width: a dot and the role, if the maps have one role.
    """
    found = []
    for is_input, side, count in zip((True, False), ("inputs", "outputs"), map(int, pair.split("+")), strict=True):
        maps: dict[int, list[tuple[int, int]]] = {}
        for group in groups:
            widths = group.method.in_features, group.method.out_features
            width, other = widths if is_input else widths[::-1]
            maps.setdefault(width, []).append((other, len(group.sites)))
        for width, others in maps.items():
            name = f"{side}{suffix or f'.{width}'}.{count}"
            found.append(FactorChoice(name, width, count, is_input, tuple(others), every))
    return tuple(found)


@cache
def _side_parameters(options: tuple[str, ...], other: int, rank: int, is_input: bool) -> tuple[int, ...]:
    """Return the values in the cores of one side for each option of its factors.

    The bonds on this side depend on the width of the other side alone, not on the factors there.
    """
    sides = (tuple(map(int, option.split("x"))) for option in options)
    shapes = (TTShape(side, (other,), rank) if is_input else TTShape((other,), side, rank) for side in sides)
    cores = (shape.core_shapes[:-1] if is_input else shape.core_shapes[1:] for shape in shapes)
    return tuple(sum(left * factor * right for left, factor, right in each) for each in cores)


@cache
def _orders(width: int, count: int) -> tuple[str, ...]:
    return tuple("x".join(map(str, f)) for f in factorisations(width, min_factors=count, max_factors=count))


@cache
def _most_balanced(width: int, count: int, is_input: bool) -> tuple[str, ...]:
    """Return the factors of the smallest sum, the largest at the end of the train (see ``candidate_shapes``)."""
    products = {tuple(sorted(f, reverse=is_input)) for f in factorisations(width, min_factors=count, max_factors=count)}
    sums = {"x".join(map(str, factors)): sum(factors) for factors in products}
    best = min(sums, key=lambda text: (sums[text], f"{text}|"), default=None)
    return () if best is None else (best,)
