"""The learning rate of an adapter of another rank than the one for which a learning rate was chosen."""

from __future__ import annotations

import math

SIGNIFICANT_DIGITS = 3


def lr_for_rank(lr: float, reference: int, rank: int) -> float:
    """Return the learning rate of a tensor train of ``rank``, given one that suits the rank ``reference``.

    It falls with the root of the rank. The scale of a train is alpha, whatever its rank, so the update is a sum of
    ``rank`` terms, each of which an optimizer such as AdamW moves by about the learning rate.

    Args:
        lr: Learning rate at ``reference``.
        reference: A rank, at least 1.
        rank: Rank of the train, at least 1.

    Returns:
        ``lr`` itself at ``reference``; else rounded to three significant digits, so that a config can contain it.
    """
    if rank == reference:
        return lr
    scaled = lr * math.sqrt(reference / rank)
    return round(scaled, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(scaled)))
