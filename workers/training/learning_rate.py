"""The learning rate of an adapter of another rank than the one for which a learning rate was chosen."""

from __future__ import annotations

import math

SIGNIFICANT_DIGITS = 3
# Measured on four tasks with three seeds (tests/benchmarks/RESULTS.md, truncation): of half, once and twice the rate
# that falls with the root of the rank, once was the best at ranks 16 and 8, and twice at ranks 4, 2 and 1.
_EXPONENT = 0.75


def lr_for_rank(lr: float, reference: int, rank: int) -> float:
    """Return the learning rate of a tensor train of ``rank``, given one that suits the rank ``reference``.

    It falls with the rank to the power of 3/4. The scale of a train is alpha, whatever its rank, so the update is a sum
    of ``rank`` terms, each of which an optimizer such as AdamW moves by about the learning rate.

    Args:
        lr: Learning rate at ``reference``.
        reference: A rank, at least 1.
        rank: Rank of the train, at least 1.

    Returns:
        ``lr`` itself at ``reference``; else rounded to three significant digits, so that a config can contain it.
    """
    if rank == reference:
        return lr
    scaled = lr * (reference / rank) ** _EXPONENT
    return round(scaled, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(scaled)))
