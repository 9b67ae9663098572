import random
from collections import Counter

import pytest

from workers.data.deduplication import deduplicate
from workers.data.examples import Example
from workers.data.splits import clean_given_splits, split_examples
from workers.data.task import SplitSettings


def ex(text, label=0, group=""):
    return Example((text,), (), label, group)


def shuffled(examples, seed=1):
    return random.Random(seed).sample(examples, len(examples))


SETTINGS = SplitSettings(validation=0.1, test=0.15)
ROWS = [ex(f"text {i}", i % 3 if i % 7 else 3) for i in range(997)]
GROUPED = [ex(f"text {i}", (i // 5) % 3 % 2, f"g{int(i**0.8)}") for i in range(1500)]


def test_a_repeat_is_kept_once_with_the_label_of_most():
    examples = [ex("A b", 1), ex("a  B", 1), ex("a b", 0), ex("c", 0), ex("C", 1), ex("d", 2)]
    for seed in range(5):
        unique, removed = deduplicate(shuffled(examples, seed))
        assert sorted((e.texts[0], e.label) for e in unique) == [("A b", 1), ("d", 2)]
        assert removed == {"duplicates": 2, "conflicts": 2}


def test_groups_that_share_an_input_become_one():
    examples = [
        ex("a", 0, "2"),
        ex("a", 0, "3"),
        ex("b", 0, "3"),
        ex("B", 0, "1"),
        ex("c", 0, "4"),
        ex("d", 0, "2"),
    ]
    for seed in range(5):
        unique, _ = deduplicate(shuffled(examples, seed))
        assert {e.key: e.group for e in unique} == {"a": "1", "b": "1", "c": "4", "d": "1"}


def test_each_label_has_its_exact_share():
    splits = split_examples(ROWS, SETTINGS)
    total = Counter(e.label for e in ROWS)
    for name, share in {"train": 0.75, "validation": 0.1, "test": 0.15}.items():
        counts = Counter(e.label for e in splits[name])
        assert all(abs(counts[label] - n * share) <= 1 for label, n in total.items()), name
    assert sum(map(len, splits.values())) == len(ROWS)


@pytest.mark.parametrize("rows", [ROWS, GROUPED])
def test_the_order_of_rows_does_not_matter(rows):
    assert split_examples(shuffled(rows), SETTINGS) == split_examples(rows, SETTINGS)
    given = {"train": rows[:600], "test": rows[500:]}
    other = {name: shuffled(part) for name, part in given.items()}
    assert clean_given_splits(other, SETTINGS) == clean_given_splits(given, SETTINGS)


@pytest.mark.parametrize("rows", [ROWS, GROUPED])
def test_another_salt_is_another_division(rows):
    other = split_examples(rows, SETTINGS.model_copy(update={"salt": "x"}))
    assert {e.key for e in other["test"]} != {e.key for e in split_examples(rows, SETTINGS)["test"]}


@pytest.mark.parametrize(("count", "sizes"), [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_a_rare_label_is_trained_on_first(count, sizes):
    splits = split_examples([ex(f"r{i}", 1) for i in range(count)], SETTINGS)
    assert tuple(len(splits[name]) for name in ("train", "validation", "test")) == sizes


def test_train_is_never_rounded_away():
    splits = split_examples([ex(f"r{i}") for i in range(3)], SplitSettings(validation=0.5, test=0.45))
    assert len(splits["train"]) == 1


def test_no_group_and_no_input_is_in_two_splits():
    rows = [*GROUPED, *(ex(f"TEXT {i * 37 % 1500} ", 0, f"g{i * 11}") for i in range(20))]
    splits = split_examples(rows, SETTINGS)
    for attribute in ("group", "key"):
        seen = [{getattr(e, attribute) for e in part} for part in splits.values()]
        assert sum(map(len, seen)) == len(set().union(*seen)), attribute
    # Rows that repeat an input link groups; every linked group stands with its likes.
    home = {e.key: name for name, part in splits.items() for e in part}
    by_group = {}
    for row in rows:
        if row.key in home:
            by_group.setdefault(row.group, set()).add(home[row.key])
    assert all(len(names) == 1 for names in by_group.values())


def test_groups_keep_the_balance_of_labels():
    splits = split_examples(GROUPED, SETTINGS)
    total = Counter(e.label for e in GROUPED)
    largest = max(Counter(e.group for e in GROUPED).values())
    for name, share in {"train": 0.75, "validation": 0.1, "test": 0.15}.items():
        counts = Counter(e.label for e in splits[name])
        assert all(abs(counts[label] - n * share) <= largest + 1 for label, n in total.items()), name


def test_a_sample_is_chosen_by_hash_and_divided_like_the_rest():
    settings = SETTINGS.model_copy(update={"sample": 200})
    splits = split_examples(ROWS, settings)
    assert sum(map(len, splits.values())) == 200
    assert splits == split_examples(shuffled(ROWS), settings)
    # A smaller sample is a part of a larger one; it is not just what would be tested on.
    more = split_examples(ROWS, SETTINGS.model_copy(update={"sample": 300}))
    assert keys(splits) <= keys(more)
    tested = {e.key for e in split_examples(ROWS, SETTINGS)["test"]}
    assert len(keys(splits) & tested) < 80


def keys(splits):
    return {e.key for part in splits.values() for e in part}


def test_given_splits_lose_what_is_held_out():
    given = {
        "train": [ex("a"), ex("A"), ex("b"), ex("c"), ex("d", 0), ex("d", 1)],
        "validation": [ex("B"), ex("e"), ex("f")],
        "test": [ex("f"), ex("c "), ex("g"), ex("g")],
    }
    splits, removed = clean_given_splits(given, SETTINGS)
    assert {name: sorted(e.key for e in part) for name, part in splits.items()} == {
        "train": ["a"],
        "validation": ["b", "e"],
        "test": ["c", "f", "g"],
    }
    assert removed == {"duplicates": 2, "conflicts": 2, "leaked": 3}


def test_given_splits_share_no_group():
    given = {
        "train": [ex("a", 0, "1"), ex("b", 0, "2"), ex("x", 0, "3"), ex("c", 0, "4")],
        "validation": [ex("y", 0, "5")],
        "test": [ex("d", 0, "1"), ex("X", 0, "6"), ex("e", 0, "4")],
    }
    given["train"].append(ex("z", 0, "6"))
    splits, removed = clean_given_splits(given, SETTINGS)
    assert [e.key for e in splits["train"]] == ["b"]
    assert removed["leaked"] == 4


def test_a_missing_validation_is_carved_from_train():
    settings = SETTINGS.model_copy(update={"sample": 400})
    splits, _ = clean_given_splits({"train": ROWS[:700], "test": ROWS[700:]}, settings)
    assert len(splits["test"]) == 297
    assert len(splits["train"]) + len(splits["validation"]) == 400
    assert abs(len(splits["validation"]) - 40) <= 2
