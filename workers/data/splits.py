"""Divide examples into splits that share no input and no group; the result does not depend on the order of rows."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from workers.data.deduplication import RemovedCounts, deduplicate, merge_groups
from workers.data.examples import Example
from workers.data.task import SplitSettings

Splits = dict[str, list[Example]]
SPLIT_NAMES = ("train", "validation", "test")


def split_examples(examples: Iterable[Example], settings: SplitSettings) -> Splits:
    """Divide examples into train, validation and test, stratified by label.

    Repeats are removed first. Examples with groups are divided by whole groups; without groups, the share of each label
    in a split is exact to within one row. Each split is sorted by hash.
    """
    unique, _ = deduplicate(examples)
    return split_unique(unique, settings)


def split_unique(unique: list[Example], settings: SplitSettings) -> Splits:
    """Do what ``split_examples`` does, with examples from ``deduplicate``."""
    shares = {"validation": settings.validation, "test": settings.test}
    return _divide(_sample(unique, settings), shares, settings.salt)


def clean_given_splits(given: Mapping[str, Iterable[Example]], settings: SplitSettings) -> tuple[Splits, RemovedCounts]:
    """Remove repeats and leaks from given splits, limit train to ``settings.sample``, and add a missing validation.

    Inputs and groups of test are removed from validation and train, those of validation from train (counted as
    ``leaked``). A missing validation split is taken from train.

    Returns:
        The splits, and the numbers of removed ``duplicates``, ``conflicts`` and ``leaked`` examples.
    """
    given_lists = [(name, list(given[name])) for name in reversed(SPLIT_NAMES) if name in given]
    merged = iter(merge_groups(example for _, examples in given_lists for example in examples))
    splits: Splits = {}
    removed, keys, groups = RemovedCounts(leaked=0), set[str](), set[str]()
    for name, examples in given_lists:  # test first
        unique, counts = deduplicate(next(merged) for _ in examples)
        splits[name] = [e for e in _by_hash(unique, settings.salt) if e.key not in keys and e.group not in groups]
        removed.update({**counts, "leaked": len(unique) - len(splits[name])})
        keys.update(e.key for e in splits[name])
        groups.update(e.group for e in splits[name] if e.group)
    splits["train"] = _by_hash(_sample(splits["train"], settings), settings.salt)
    if "validation" not in splits:
        splits |= _divide(splits["train"], {"validation": settings.validation}, settings.salt)
    return {name: splits[name] for name in SPLIT_NAMES}, removed


def _sample(examples: list[Example], settings: SplitSettings) -> list[Example]:
    # Another salt than that of the division: otherwise the rows with the smallest hashes would all be in one split.
    if settings.sample is None or len(examples) <= settings.sample:
        return examples
    return _by_hash(examples, f"{settings.salt}|sample")[: settings.sample]


def _divide(examples: list[Example], shares: dict[str, float], salt: str) -> Splits:
    """Divide examples into train and the splits of ``shares``, which gives the share of each."""
    assign = _assign_groups if any(e.group for e in examples) else _assign_rows
    split_of = assign(examples, shares, salt)
    splits: Splits = {name: [] for name in ("train", *shares)}
    for example in _by_hash(examples, salt):
        splits[split_of[example.key]].append(example)
    return splits


def _assign_rows(examples: list[Example], shares: dict[str, float], salt: str) -> dict[str, str]:
    """Return the split of each key: the rows of each label, sorted by hash, fill one split after another."""
    split_of: dict[str, str] = {}
    by_label: dict[int, list[str]] = defaultdict(list)
    for example in _by_hash(examples, salt):
        by_label[example.label].append(example.key)
    for keys in by_label.values():
        # A label with enough rows is in every split, and every label is in train.
        least, start = int(len(keys) > len(shares)), 0
        for name, share in shares.items():
            end = min(start + max(least, int(len(keys) * share + 0.5)), len(keys) - 1)
            split_of.update(dict.fromkeys(keys[start:end], name))
            start = end
        split_of.update(dict.fromkeys(keys[start:], "train"))
    return split_of


def _assign_groups(examples: list[Example], shares: dict[str, float], salt: str) -> dict[str, str]:
    """Return the split of each key: each group, in hash order, goes where the label counts come closest to plan."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.group].append(example)
    totals = Counter(e.label for e in examples)
    all_shares = {"train": 1 - sum(shares.values()), **shares}
    planned = {name: {label: n * share for label, n in totals.items()} for name, share in all_shares.items()}
    actual: dict[str, Counter[int]] = {name: Counter() for name in planned}
    split_of: dict[str, str] = {}
    for group in sorted(groups, key=lambda name: _hash(name, salt)):
        labels = Counter(e.label for e in groups[group])
        best = min(planned, key=lambda name: _deviation_growth(labels, actual[name], planned[name]))
        actual[best] += labels
        split_of.update((e.key, best) for e in groups[group])
    return split_of


def _deviation_growth(added: Counter[int], actual: Counter[int], planned: dict[int, float]) -> float:
    """Return the growth of chi-squared between actual and planned label counts if a group is added."""
    return sum(n * (2 * (actual[label] - planned[label]) + n) / planned[label] for label, n in added.items())


def _by_hash(examples: Iterable[Example], salt: str) -> list[Example]:
    return sorted(examples, key=lambda e: _hash(e.key, salt))


def _hash(text: str, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}\x1e{text}".encode()).digest()
