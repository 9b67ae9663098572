"""Shapes of tensor trains: factors of both widths, bonds, and parameter counts. Does not import torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ttmoe.errors import InputError
from ttmoe.factorisation import factorisations, nearest_factorisation

# `auto_shape` uses two factors for a width if both are at most this, else three.
LARGEST_AUTO_FACTOR = 32

_TEXT = re.compile(r"\d+(?:x\d+)*\|\d+(?:x\d+)*@\d+")


@dataclass(frozen=True)
class TTShape:
    """The ordered factors and the rank of one tensor-train update of a linear map.

    Two shapes are equal only if their factors are in the same order.

    Attributes:
        inputs: Factors of the input width; the first indexes the fastest-varying part of the input index
            (arXiv 2504.21190).
        outputs: Factors of the output width; the first indexes the slowest-varying part of the output index.
        rank: Upper limit of every bond; see ``ranks``.

    Raises:
        InputError: If a side has no factors, or a factor or the rank is below 1.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rank: int

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs or min(*self.inputs, *self.outputs, self.rank) < 1:
            raise InputError(f"the shape {self} has an empty side, or a factor or rank below 1",
                             fix="use at least one factor on each side, and whole numbers of at least 1")  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> TTShape:
        """Parse a text such as ``16x8x4x4|4x4x8x16@5``, the form that ``str`` returns.

        Raises:
            InputError: If the text has another form.
        """
        if not _TEXT.fullmatch(text):
            raise InputError(f"'{text}' is not a shape", fix="write a shape such as '16x8x4x4|4x4x8x16@5'")
        factors, rank = text.split("@")
        inputs, outputs = (tuple(map(int, side.split("x"))) for side in factors.split("|"))
        return cls(inputs, outputs, int(rank))

    def __str__(self) -> str:
        return f"{_join(self.inputs)}|{_join(self.outputs)}@{self.rank}"

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
        """The number of input cores. They build A, the cores after them build B."""
        return len(self.inputs)

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ``len(inputs) + len(outputs) + 1`` bonds, with the 1 at both ends.

        Each bond is ``rank``, or the product of the factors left or right of it if that is smaller: the unfolding at
        the bond has no higher rank (Oseledets 2011, theorem 2.1), so a wider bond would only add parameters.
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

    def require_widths(self, in_features: int, out_features: int, *, where: str = "") -> None:
        """Raise InputError, located at ``where``, unless the factors multiply to these widths."""
        sides = ("input", self.inputs, in_features), ("output", self.outputs, out_features)
        for side, factors, width in sides:
            if math.prod(factors) != width:
                nearest = _join(nearest_factorisation(factors, width))
                raise InputError(f"the {side} factors {_join(factors)} multiply to {math.prod(factors)}, "
                                 f"but the {side} width is {width}", where=where,
                                 fix=f"the nearest factors that fit are {nearest}")  # fmt: skip


def _join(factors: tuple[int, ...]) -> str:
    return "x".join(map(str, factors))


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
    """Return all shapes for these widths, sorted by the number of parameters.

    Args:
        in_features: Input width.
        out_features: Output width.
        rank: Rank of every shape.
        cores: Smallest and largest number of cores.
        min_factor: Smallest factor.
        max_factor: Largest factor; None for no limit.
        ordered: Whether to return every order of the factors. If False, only the order with the largest factors at both
            ends is returned: cores there have n r values instead of n r², so it has the fewest parameters unless a
            bond is capped.

    Returns:
        The shapes; empty if no factorisation satisfies the bounds.

    Raises:
        InputError: If a width is below 1 or ``min_factor`` below 2.
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
    """Return a balanced shape of 4 to 6 cores for any pair of widths.

    Each width gets two factors as equal as possible, or three if one of two would exceed 32 (above a width of 1,024):
    TT-LoRA was seen to stall with 8 cores or more, and did best with 4 to 6. The largest factors are at the ends, where
    they need the fewest parameters. A width with a large prime factor keeps that prime as its largest factor, and a
    prime width is a single core, as in plain low rank; such a shape may have 2 or 3 cores.

    Raises:
        InputError: If a width or the rank is below 1.
    """
    inputs, outputs = _balanced_factors(in_features), _balanced_factors(out_features)
    return TTShape(inputs[::-1], outputs, rank)


def _balanced_factors(width: int) -> tuple[int, ...]:
    """Return two or three nearly equal factors in ascending order."""
    options = factorisations(width, max_factors=3)
    pairs = [f for f in options if len(f) == 2 and max(f) <= LARGEST_AUTO_FACTOR]
    return tuple(sorted(min(pairs or options, key=lambda f: (max(f), len(f), sum(f)), default=(width,))))


def lora_parameters(in_features: int, out_features: int, rank: int) -> int:
    """Return the number of values in plain low-rank factors A (rank, in) and B (out, rank)."""
    return rank * (in_features + out_features)
