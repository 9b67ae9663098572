from itertools import islice, pairwise

import pytest

from ttmoe.encoding import Choice, Item
from workers.data.examples import Example
from workers.training.batches import (
    TokenizedRows,
    longest_first,
    to_input,
    token_batches,
    training_batches,
)


def rows_of(lengths):
    return TokenizedRows([Item({"input_ids": [0] * n}) for n in lengths], [0] * len(lengths))


@pytest.fixture
def rows():
    return rows_of([1 + (7 * i) % 40 for i in range(1003)])


def epoch(batches, rows, size):
    return list(islice(batches, -(-len(rows) // size)))


@pytest.mark.parametrize("size", [1, 8, 32, 1003, 5000])
def test_every_row_once_an_epoch(rows, size):
    batches = training_batches(rows, size, seed=3)
    for _ in range(3):
        taken = epoch(batches, rows, size)
        assert sorted(i for batch in taken for i in batch) == list(range(len(rows)))
        assert max(map(len, taken)) <= size


def test_the_order_follows_from_the_seed_alone(rows):
    first = list(islice(training_batches(rows, 16, seed=3), 200))
    assert first == list(islice(training_batches(rows, 16, seed=3), 200))
    assert first != list(islice(training_batches(rows, 16, seed=4), 200))


def test_epochs_differ(rows):
    batches = training_batches(rows, 16, seed=0)
    assert epoch(batches, rows, 16) != epoch(batches, rows, 16)


def test_rows_of_a_batch_are_of_like_length(rows):
    padded = sum(
        len(batch) * max(rows.items[i].length for i in batch)
        for batch in epoch(training_batches(rows, 16, seed=0), rows, 16)
    )
    assert padded < 1.1 * sum(item.length for item in rows.items)  # at random: 1.9


def test_short_and_long_batches_are_mixed(rows):
    longest = [max(rows.items[i].length for i in b) for b in epoch(training_batches(rows, 16, 0), rows, 16)]
    rises = sum(one < other for one, other in pairwise(longest))
    assert 20 < rises < 43  # of 62; about 50 within sorted chunks


def test_skipping_batches_keeps_the_order(rows):
    whole = list(islice(training_batches(rows, 16, seed=3, max_tokens=300), 400))
    assert list(islice(training_batches(rows, 16, seed=3, max_tokens=300), 150, 400)) == whole[150:]


def test_training_batches_without_rows_raise():
    with pytest.raises(ValueError, match="no rows"):
        next(training_batches(rows_of([]), 8, seed=0))


def padded(rows, batch):
    sequences = sum(rows.sequence_offsets[i + 1] - rows.sequence_offsets[i] for i in batch)
    return sequences * max(rows.lengths[i] for i in batch)


def choices(counts):
    options = [tuple({"input_ids": [0] * (n + i)} for i in range(n)) for n in counts]
    return TokenizedRows([Item({"input_ids": [0] * 99}, each) for each in options], [0] * len(counts))


@pytest.mark.parametrize("rows", [rows_of([1 + (7 * i) % 40 for i in range(503)]), choices([2, 3, 4, 5] * 50)])
@pytest.mark.parametrize("tokens", [30, 256])
def test_batches_by_tokens_hold_the_budget_and_are_full(rows, tokens):
    batches, seen, taken = training_batches(rows, 1, seed=0, max_tokens=tokens), set(), []
    while len(seen) < len(rows):
        taken.append(next(batches))
        assert not seen & set(taken[-1])
        seen |= set(taken[-1])
    assert all(padded(rows, batch) <= tokens or len(batch) == 1 for batch in taken)
    assert any(padded(rows, batch) > tokens for batch in taken) == (tokens == 30)  # rows of 31 to 45 tokens
    if tokens == 256:
        assert sum(padded(rows, batch) for batch in taken) > 0.7 * 256 * len(taken)


def test_packing_keeps_the_order_and_puts_too_long_rows_alone():
    rows = rows_of([3, 3, 3, 50, 2, 2])
    assert list(token_batches(rows, range(6), 10)) == [[0, 1, 2], [3], [4, 5]]
    assert list(token_batches(rows, [5, 0], 10)) == [[5, 0]]
    assert list(token_batches(rows, [], 10)) == []
    assert longest_first(rows) == [3, 0, 1, 2, 4, 5]


def test_sequences_are_counted_over_the_split_options_in_order():
    mixed = TokenizedRows([*choices([2, 3]).items, *rows_of([7]).items, *choices([2]).items], [0] * 4)
    assert mixed.sequence_offsets == [0, 2, 5, 6, 8]
    assert mixed.sequence_numbers([3, 1]) == [6, 7, 2, 3, 4]
    assert (mixed.lengths, mixed.token_counts) == ([3, 5, 7, 3], [5, 12, 7, 5])


def test_states_are_gathered_by_sequence_numbers():
    class Kept:
        depth = 1

        def gather(self, sequences, device):
            return list(sequences), device

    rows = choices([2, 3])
    assert rows.gather_states([1], "cpu") is None
    kept = TokenizedRows(rows.items, rows.labels, Kept())
    assert kept.gather_states([1, 0], "cpu") == ([2, 3, 4, 0, 1], "cpu")


def test_model_input_of_an_example():
    assert to_input(Example(("a",), (), 0, "")) == "a"
    assert to_input(Example(("a", "b"), (), 0, "")) == ("a", "b")
    assert to_input(Example(("a",), ("x", "y"), 0, "")) == Choice("a", ("x", "y"))
