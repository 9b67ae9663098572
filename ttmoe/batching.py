"""Batches of passes without gradients: how much of the rows is in the model at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BATCH_ROWS = 64
"""Maximum rows in a batch where the caller sets no other number."""

# Padded tokens in a batch. On one core, MiniLM in bf16 reads 13,800 tokens of QNLI a second with 2,048 of them, 14,700
# with 3,072, 11,000 with 8,192 and 9,100 in batches of 128 rows; of TREC 13,500, 13,100, 9,100 and 12,600.
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 32768  # a smaller batch leaves the GPU idle


def batch_tokens(device: str) -> int:
    """Return the maximum number of padded tokens in a batch on a device of this type, ``cpu`` or a GPU."""
    return BATCH_TOKENS_CPU if device == "cpu" else BATCH_TOKENS_GPU


def split_by_tokens(
    order: Sequence[int],
    lengths: Sequence[int],
    counts: Sequence[int],
    max_tokens: int,
    max_rows: int | None = None,
) -> Iterator[list[int]]:
    """Split row numbers, in this order, into batches of at most ``max_tokens`` padded tokens and ``max_rows`` rows.

    A row with more tokens forms a batch of its own.

    Args:
        order: The row numbers. Longest first, a batch that is too large for the memory fails at once.
        lengths: For each row the tokens of its longest sequence.
        counts: For each row its number of sequences.
        max_tokens: Padded tokens of a batch, at most.
        max_rows: Rows of a batch, at most.
    """
    batch: list[int] = []
    longest = sequences = 0
    for row in order:
        padded = (sequences + counts[row]) * max(longest, lengths[row])
        if batch and (padded > max_tokens or len(batch) == max_rows):
            yield batch
            batch, longest, sequences = [], 0, 0
        batch.append(row)
        longest, sequences = max(longest, lengths[row]), sequences + counts[row]
    if batch:
        yield batch


def half_of(rows: int, max_tokens: int | None, max_length: int) -> int | None:
    """Return half the rows that are in the model at once, or None if that is one row already.

    Of a batch with ``max_tokens``, the rows of maximal length count: they are what fills the memory.

    Args:
        rows: Rows of a batch, at most.
        max_tokens: Padded tokens of a batch, at most; None without this limit.
        max_length: Tokens of the longest row.
    """
    if max_tokens is not None:
        rows = min(rows, max(1, max_tokens // max_length))
    return -(-rows // 2) if rows > 1 else None
