"""The choices of rank and shape of the maps that share them, with the number of parameters of every option."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from orchestrator.plan.factor_choices import FactorChoice, factor_choices
from ttmoe.adapter import Group
from ttmoe.errors import InputError
from ttmoe.shapes import TTShape


@dataclass(frozen=True)
class ShapeChoice:
    """The choices of the rank, of the numbers of input and output factors, and of the factors of some maps.

    Attributes:
        groups: The groups of maps.
        ranks: Options of the rank.
        pairs: Options of the numbers of factors: texts such as ``2+3`` for two input and three output factors.
        every: Whether all factors in every order are options, and not the most balanced ones alone.
        suffix: End of the names of the choices: a dot and the role of the maps, or empty if they have several.
        mark: What follows, if the options differ from those that the same name has elsewhere in the space.
    """

    groups: tuple[Group, ...]
    ranks: tuple[int, ...]
    pairs: tuple[str, ...]
    every: bool
    suffix: str = ""
    mark: str = ""
    _fewest: dict[tuple[int | None, str | None], int] = field(default_factory=dict, compare=False, repr=False)
    _factors: dict[str, tuple[FactorChoice, ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def options(self) -> tuple[Any, ...]:
        """What the options of all choices of this name follow from."""
        widths = [(group.method.in_features, group.method.out_features) for group in self.groups if self.suffix]
        return (self.ranks, self.pairs, widths)

    @property
    def rank_name(self) -> str:
        """Name of the choice of the rank."""
        return f"rank{self.suffix}{self.mark}"

    @property
    def pair_name(self) -> str:
        """Name of the choice of the numbers of factors."""
        return f"factors{self.suffix}{self.mark}"

    def factor_choices(self, pair: str) -> tuple[FactorChoice, ...]:
        """Return the choices of factors for a pair of numbers, input widths first."""
        if pair not in self._factors:
            suffix = self.suffix and self.suffix + self.mark
            self._factors[pair] = factor_choices(self.groups, pair, self.every, suffix)
        return self._factors[pair]

    def fewest(self, rank: int | None = None, pair: str | None = None) -> int:
        """Return the smallest number of parameters, of all shapes or of those with a rank and a pair."""
        if (rank, pair) not in self._fewest:
            if rank is None:
                fewest = min(self.fewest(rank, pair) for rank in self.ranks)
            elif pair is None:
                fewest = min(self.fewest(rank, pair) for pair in self.pairs)
            else:
                fewest = sum(choice.fewest(rank) for choice in self.factor_choices(pair))
            self._fewest[rank, pair] = fewest
        return self._fewest[rank, pair]

    def count(self) -> int:
        """Return the number of combinations of all options."""
        shapes = (prod(len(choice.options) for choice in self.factor_choices(pair)) for pair in self.pairs)
        return sum(shapes) * len(self.ranks)

    def sizes(self, bound: int, limit: int) -> list[int]:
        """Return the parameters of every combination that has at most ``bound``, in ascending order.

        Args:
            bound: Maximum number of parameters.
            limit: Number of combinations after which no more are listed.
        """
        found: list[int] = []
        for rank, pair in ((rank, pair) for rank in self.ranks for pair in self.pairs):
            sizes = [list(choice.sizes(rank).values()) for choice in self.factor_choices(pair)]
            found += bounded_sums(sizes, bound, limit - len(found))
            if len(found) >= limit:
                break
        return sorted(found)

    def shape_of(self, group: Group, rank: int, pair: str, factors: dict[str, str]) -> TTShape:
        """Return the shape of a group's maps; ``factors`` are the options of ``factor_choices`` by name."""
        choices = [choice for choice in self.factor_choices(pair) if choice.belongs_to(group)]
        inputs, outputs = (factors[choice.name] for choice in choices)
        return TTShape.parse(f"{inputs}|{outputs}@{rank}")


def fitting_pairs(groups: Sequence[Group], cores: tuple[int, int]) -> tuple[str, ...]:
    """Return the numbers of input and output factors, as in ``2+3``, that fit every map; they differ by at most one.

    Raises:
        InputError: If there are none with so many cores.
    """
    fewest, most = cores
    pairs = [(p, q) for p in range(1, most) for q in range(1, most) if fewest <= p + q <= most and abs(p - q) <= 1]
    texts = [f"{p}+{q}" for p, q in pairs]
    fitting = tuple(text for text in texts if all(choice.options for choice in factor_choices(groups, text, False)))
    if not fitting:
        sizes = ", ".join(f"{g.method.in_features} to {g.method.out_features}" for g in groups)
        what = f"no shape with {fewest} to {most} cores fits linear maps of {sizes} features"
        raise InputError(what, where="search.cores", fix="allow more or fewer cores")
    return fitting


def different_ranks(groups: Sequence[Group], ranks: Sequence[int]) -> tuple[int, ...]:
    """Return each rank once; of those above the rank of every map only the smallest, which they are capped to."""
    largest = max(min(group.method.in_features, group.method.out_features) for group in groups)
    above = min((rank for rank in ranks if rank >= largest), default=largest)
    return tuple(dict.fromkeys(rank for rank in ranks if rank <= above))


def bounded_sums(lists: Sequence[Sequence[int]], bound: int, limit: int) -> list[int]:
    """Return every sum of one number of each list that is at most ``bound``.

    Args:
        lists: Lists in ascending order.
        bound: The largest sum.
        limit: Once as many are found, the rest is left out, and the sums need not include the last lists.
    """
    sums, rest = [0], sum(numbers[0] for numbers in lists)
    for numbers in lists:
        rest -= numbers[0]
        longer: list[int] = []
        for before in sums:
            room = bound - rest - before
            longer += [before + number for number in numbers[: bisect_right(numbers, room)]]
            if len(longer) >= limit:  # each of them continues to at least one sum
                return longer
        sums = longer
    return sums
