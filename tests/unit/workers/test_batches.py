from itertools import islice, pairwise

import pytest

from ttmoe.encoding import Choice, Item
from workers.batches import Rows, as_input, evaluation_batches, training_batches
from workers.examples import Example


def rows_of(lengths):
    return Rows([Item({"input_ids": [0] * n}) for n in lengths], [0] * len(lengths))


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


def test_evaluation_takes_every_row_once_the_longest_first(rows):
    batches = list(evaluation_batches(rows.items, 64))
    lengths = [rows.items[i].length for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    assert {len(batch) for batch in batches[:-1]} == {64}


def test_no_rows_no_batches():
    assert list(evaluation_batches([], 64)) == []


def test_what_the_model_reads_of_an_example():
    assert as_input(Example(("a",), (), 0, "")) == "a"
    assert as_input(Example(("a", "b"), (), 0, "")) == ("a", "b")
    assert as_input(Example(("a",), ("x", "y"), 0, "")) == Choice("a", ("x", "y"))
