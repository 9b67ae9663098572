"""Batches by padded tokens and rows, and half of what is in the model at once."""

from __future__ import annotations

import pytest

from ttmoe.batching import BATCH_TOKENS_CPU, BATCH_TOKENS_GPU, batch_tokens, half_of, split_by_tokens


def test_d18_batches_hold_both_limits_and_keep_the_order():
    lengths, ones = [9, 7, 5, 4, 3, 1], [1] * 6
    assert list(split_by_tokens(range(6), lengths, ones, 16)) == [[0], [1, 2], [3, 4, 5]]
    assert list(split_by_tokens(range(6), lengths, ones, 100, 2)) == [[0, 1], [2, 3], [4, 5]]
    assert list(split_by_tokens([5, 0], lengths, ones, 100)) == [[5, 0]]
    assert list(split_by_tokens(range(6), lengths, ones, 1, 64)) == [[0], [1], [2], [3], [4], [5]]
    assert list(split_by_tokens([], [], [], 16)) == []


def test_d18_every_sequence_of_a_row_counts():
    assert list(split_by_tokens(range(3), [4, 4, 4], [2, 2, 1], 12)) == [[0], [1, 2]]


@pytest.mark.parametrize(
    ("rows", "tokens", "length", "half"),
    [(64, 2048, 32, 32), (64, 2048, 128, 8), (4, 2048, 128, 2), (3, 2048, 128, 2), (64, None, 512, 32),
     (1, None, 512, None), (64, 2048, 2048, None), (64, 2048, 8192, None)],
)  # fmt: skip
def test_d18_half_of_what_is_in_the_model_at_once_whatever_sets_it(rows, tokens, length, half):
    assert half_of(rows, tokens, length) == half


def test_the_device_decides_the_tokens():
    assert (batch_tokens("cpu"), batch_tokens("cuda")) == (BATCH_TOKENS_CPU, BATCH_TOKENS_GPU)
