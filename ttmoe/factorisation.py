"""Factorise a width into ordered factors. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ttmoe.errors import InputError


def factorisations(
    width: int, *, min_factors: int = 1, max_factors: int, min_factor: int = 2, max_factor: int | None = None
) -> list[tuple[int, ...]]:
    """Return all ordered ways to write ``width`` as a product, sorted by the number of factors, then by the factors.

    Args:
        width: The product, at least 1.
        min_factors: Smallest number of factors.
        max_factors: Largest number of factors.
        min_factor: Smallest factor, at least 2: ones would add cores without any effect.
        max_factor: Largest factor; None for no limit.

    Returns:
        Tuples of factors; empty if no product satisfies the bounds.

    Raises:
        InputError: If ``width`` is below 1 or ``min_factor`` below 2.
    """
    if width < 1 or min_factor < 2:
        raise InputError(f"cannot factorise the width {width} into factors of at least {min_factor}",
                         fix="use a width of at least 1 and factors of at least 2")  # fmt: skip
    factors = [d for d in _divisors(width) if min_factor <= d <= (max_factor or width)]
    counts = range(max(min_factors, 1), max_factors + 1)
    return [product for count in counts for product in _ordered_products(width, count, factors)]


def _divisors(width: int) -> list[int]:
    low = [d for d in range(1, math.isqrt(width) + 1) if width % d == 0]
    return sorted({*low, *(width // d for d in low)})


def _ordered_products(width: int, count: int, factors: list[int]) -> Iterator[tuple[int, ...]]:
    if count == 1:
        if width in factors:
            yield (width,)
        return
    for first in factors:
        if width % first == 0:
            for rest in _ordered_products(width // first, count - 1, factors):
                yield (first, *rest)


def nearest_factorisation(factors: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Return the ordered factorisation of ``width`` nearest to ``factors``, by the sum of |log ratio|.

    It has as many factors as ``factors``, or fewer if the width does not have that many.
    """
    # One position at a time, keeping only the best way to each remaining width: a width with a hundred divisors has far
    # too many factorisations to list them for an error message.
    best: dict[int, tuple[float, tuple[int, ...]]] = {width: (0.0, ())}
    for target in factors:
        step: dict[int, tuple[float, tuple[int, ...]]] = {}
        for remaining, (cost, chosen) in best.items():
            for d in _divisors(remaining):
                candidate = (cost + abs(math.log(d / max(target, 1))), (*chosen, d))
                step[remaining // d] = min(step.get(remaining // d, candidate), candidate)
        best = step
    return tuple(d for d in best[1][1] if d > 1) or (width,)
