"""Shapes of tensor trains: how a width is split into factors, and what that costs. Needs no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ttmoe.errors import InputError

# `auto_shape` takes two factors on a side until the larger of them passes this, then three.
LARGEST_AUTO_FACTOR = 32

_TEXT = re.compile(r"\d+(?:x\d+)*\|\d+(?:x\d+)*@\d+")


@dataclass(frozen=True)
class TTShape:
    """The ordered factors and the rank of one tensor-train update of a linear map.

    ``inputs`` multiply to the input width, the first acting on the fastest-varying part of the input index;
    ``outputs`` multiply to the output width, the first being the slowest-varying part of the output index
    (arXiv 2504.21190). ``rank`` is asked of every bond; see ``ranks``. Two shapes are equal only if their
    factors stand in the same order, so mirrored shapes stay apart. Raises ``InputError`` for empty or
    non-positive values.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rank: int

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs or min(*self.inputs, *self.outputs, self.rank) < 1:
            raise InputError(
                f"the shape {self} has an empty side, or a factor or rank below 1",
                fix="give at least one factor on each side, and whole numbers from 1 up",
            )

    @classmethod
    def parse(cls, text: str) -> TTShape:
        """Read ``16x8x4x4|4x4x8x16@5``, the form that ``str`` writes; raises ``InputError``."""
        if not _TEXT.fullmatch(text):
            raise InputError(f"'{text}' is not a shape", fix="write it as in '16x8x4x4|4x4x8x16@5'")
        factors, rank = text.split("@")
        inputs, outputs = (tuple(map(int, side.split("x"))) for side in factors.split("|"))
        return cls(inputs, outputs, int(rank))

    def __str__(self) -> str:
        return f"{_product(self.inputs)}|{_product(self.outputs)}@{self.rank}"

    @property
    def in_features(self) -> int:
        """The input width."""
        return math.prod(self.inputs)

    @property
    def out_features(self) -> int:
        """The output width."""
        return math.prod(self.outputs)

    @property
    def split(self) -> int:
        """The number of input cores: cores before it build A, the others B."""
        return len(self.inputs)

    @property
    def ranks(self) -> tuple[int, ...]:
        """All bonds, the 1 at both ends included: ``len(inputs) + len(outputs) + 1`` numbers.

        Each is the rank, or the product of the factors left or right of the bond where that is smaller: the
        unfolding there has no higher rank (Oseledets 2011, theorem 2.1), so a wider bond would add parameters
        only.
        """
        factors = self.inputs + self.outputs
        bonds = range(len(factors) + 1)
        return tuple(min(self.rank, math.prod(factors[:bond]), math.prod(factors[bond:])) for bond in bonds)

    @property
    def inner_rank(self) -> int:
        """The bond between input and output cores: the rank of the update as a matrix."""
        return self.ranks[self.split]

    @property
    def core_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(left bond, factor, right bond) of every core, input cores first."""
        ranks = self.ranks
        return tuple(zip(ranks[:-1], self.inputs + self.outputs, ranks[1:], strict=True))

    @property
    def parameters(self) -> int:
        """The number of values in all cores."""
        return sum(math.prod(core) for core in self.core_shapes)

    def require(self, in_features: int, out_features: int, *, where: str = "") -> None:
        """Raise ``InputError`` unless this shape fits a map of ``in_features`` to ``out_features``."""
        sides = ("input", self.inputs, in_features), ("output", self.outputs, out_features)
        for side, factors, width in sides:
            if math.prod(factors) != width:
                raise InputError(
                    f"the {side} factors {_product(factors)} multiply to {math.prod(factors)}, "
                    f"but the {side} width is {width}",
                    where=where,
                    fix=f"the nearest factors that fit are {_product(nearest_factorisation(factors, width))}",
                )


def _product(factors: tuple[int, ...]) -> str:
    return "x".join(map(str, factors))


def factorisations(
    width: int, *, min_factors: int = 1, max_factors: int, min_factor: int = 2, max_factor: int | None = None
) -> list[tuple[int, ...]]:
    """All ordered ways to write ``width`` as a product, fewest factors first and in ascending order within.

    Bounds are inclusive. A width that allows none gives an empty list. Raises ``InputError`` for a width
    below 1 or ``min_factor`` below 2 (ones could be put in anywhere, and would only add cores that hold
    nothing).
    """
    if width < 1 or min_factor < 2:
        raise InputError(
            f"cannot factorise the width {width} into factors from {min_factor} up",
            fix="use a width from 1 up and factors from 2 up",
        )
    divisors = [d for d in _divisors(width) if min_factor <= d <= (max_factor or width)]
    counts = range(max(min_factors, 1), max_factors + 1)
    return [factors for count in counts for factors in _ordered(width, count, divisors)]


def _divisors(width: int) -> list[int]:
    low = [d for d in range(1, math.isqrt(width) + 1) if width % d == 0]
    return sorted({*low, *(width // d for d in low)})


def _ordered(width: int, count: int, divisors: list[int]) -> Iterator[tuple[int, ...]]:
    if count == 1:
        if width in divisors:
            yield (width,)
        return
    for first in divisors:
        if width % first == 0:
            for rest in _ordered(width // first, count - 1, divisors):
                yield (first, *rest)


def nearest_factorisation(factors: tuple[int, ...], width: int) -> tuple[int, ...]:
    """The ordered factorisation of ``width`` that differs least from ``factors``, by the sum of |log ratio|.

    It has as many factors as were given, or fewer where the width does not have that many.
    """
    # One position at a time, keeping only the best way to each remaining width: a width with a hundred
    # divisors has far too many factorisations to list them for an error message.
    best: dict[int, tuple[float, tuple[int, ...]]] = {width: (0.0, ())}
    for wanted in factors:
        step: dict[int, tuple[float, tuple[int, ...]]] = {}
        for left, (cost, chosen) in best.items():
            for d in _divisors(left):
                way = (cost + abs(math.log(d / max(wanted, 1))), (*chosen, d))
                step[left // d] = min(step.get(left // d, way), way)
        best = step
    return tuple(d for d in best[1][1] if d > 1) or (width,)


def candidate_shapes(
    in_features: int,
    out_features: int,
    rank: int,
    *,
    cores: tuple[int, int] = (4, 6),
    min_factor: int = 2,
    max_factor: int | None = None,
    ordered: bool = False,
) -> list[TTShape]:
    """Every shape for these widths with ``cores`` cores (inclusive bounds), fewest parameters first.

    With ``ordered`` all orders of the factors are listed. Without, one shape stands for all orders: largest
    factors at both ends, where a core costs n r values instead of n r², so the cheapest unless a bond is
    capped. May be empty. Raises ``InputError`` as ``factorisations`` does.
    """
    fewest, most = cores
    inputs, outputs = (
        factorisations(width, max_factors=most - 1, min_factor=min_factor, max_factor=max_factor)
        for width in (in_features, out_features)
    )
    if not ordered:
        inputs = [f for f in inputs if list(f) == sorted(f, reverse=True)]
        outputs = [f for f in outputs if list(f) == sorted(f)]
    shapes = (TTShape(i, o, rank) for i in inputs for o in outputs if fewest <= len(i) + len(o) <= most)
    return sorted(shapes, key=lambda s: (s.parameters, len(s.inputs + s.outputs), s.inputs, s.outputs))


def auto_shape(in_features: int, out_features: int, rank: int) -> TTShape:
    """A balanced shape of 4 to 6 cores for any pair of widths.

    Each side gets two factors as equal as possible, or three where two would pass 32 (above a width of
    1,024): with 8 cores or more TT-LoRA was seen to stall, and 4 to 6 did best. The largest factors stand at
    the ends, where they are cheapest. A width with a large prime factor keeps that prime as its
    largest factor, and a prime width is a single core, as in plain low rank: such a shape may have 2 or 3
    cores. Raises ``InputError`` for a width or rank below 1.
    """
    inputs, outputs = _balanced(in_features), _balanced(out_features)
    return TTShape(inputs[::-1], outputs, rank)


def _balanced(width: int) -> tuple[int, ...]:
    """Two or three nearly equal factors, ascending."""
    options = factorisations(width, max_factors=3)
    pairs = [f for f in options if len(f) == 2 and max(f) <= LARGEST_AUTO_FACTOR]
    return tuple(sorted(min(pairs or options, key=lambda f: (max(f), len(f), sum(f)), default=(width,))))


def lora_parameters(in_features: int, out_features: int, rank: int) -> int:
    """The number of values in plain low-rank factors A (rank, in) and B (out, rank)."""
    return rank * (in_features + out_features)
