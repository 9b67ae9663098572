"""Examples become splits that share no input and no group, the same ones whatever the rows' order."""

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
    """Train, validation and test, stratified by label; whole groups where examples have groups.

    Repeats are removed first. Without groups each label's share of a split is exact to within one row. Each
    split is in the order of a hash.
    """
    unique, _ = deduplicate(examples)
    shares = {"validation": settings.validation, "test": settings.test}
    return _divide(_sample(unique, settings), shares, settings.salt)


def clean_given_splits(given: Mapping[str, Iterable[Example]], settings: SplitSettings) -> tuple[Splits, RemovedCounts]:
    """Given splits made fit to use, and how many examples that took out.

    Repeats are removed in each; train loses what stands in validation or test, and validation what stands in
    test (inputs and groups, counted as ``leaked``). ``sample`` limits train. A missing validation is carved
    from train.
    """
    sizes = [(name, list(given[name])) for name in reversed(SPLIT_NAMES) if name in given]
    merged = iter(merge_groups(example for _, examples in sizes for example in examples))
    splits: Splits = {}
    removed, keys, groups = RemovedCounts(leaked=0), set[str](), set[str]()
    for name, examples in sizes:  # test first
        unique, taken_out = deduplicate(next(merged) for _ in examples)
        splits[name] = [e for e in _by_hash(unique, settings.salt) if e.key not in keys and e.group not in groups]
        removed.update({**taken_out, "leaked": len(unique) - len(splits[name])})
        keys.update(e.key for e in splits[name])
        groups.update(e.group for e in splits[name] if e.group)
    splits["train"] = _by_hash(_sample(splits["train"], settings), settings.salt)
    if "validation" not in splits:
        splits |= _divide(splits["train"], {"validation": settings.validation}, settings.salt)
    return {name: splits[name] for name in SPLIT_NAMES}, removed


def _sample(examples: list[Example], settings: SplitSettings) -> list[Example]:
    # A salt of its own: the rows with the smallest hashes would all be in one split.
    if settings.sample is None or len(examples) <= settings.sample:
        return examples
    return _by_hash(examples, f"{settings.salt}|sample")[: settings.sample]


def _divide(examples: list[Example], shares: dict[str, float], salt: str) -> Splits:
    place = _place_groups if any(e.group for e in examples) else _place_rows
    names = place(examples, shares, salt)
    splits: Splits = {name: [] for name in ("train", *shares)}
    for example in _by_hash(examples, salt):
        splits[names[example.key]].append(example)
    return splits


def _place_rows(examples: list[Example], shares: dict[str, float], salt: str) -> dict[str, str]:
    """The split of each key: each label's rows, in the order of their hashes, fill share after share."""
    names: dict[str, str] = {}
    by_label: dict[int, list[str]] = defaultdict(list)
    for example in _by_hash(examples, salt):
        by_label[example.label].append(example.key)
    for keys in by_label.values():
        # A label with a row for every split stands in every split, and always in train.
        least, start = int(len(keys) > len(shares)), 0
        for name, share in shares.items():
            end = min(start + max(least, int(len(keys) * share + 0.5)), len(keys) - 1)
            names.update(dict.fromkeys(keys[start:end], name))
            start = end
        names.update(dict.fromkeys(keys[start:], "train"))
    return names


def _place_groups(examples: list[Example], shares: dict[str, float], salt: str) -> dict[str, str]:
    """The split of each key: groups, in the order of their hashes, go where labels come nearest to plan."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.group].append(example)
    totals = Counter(e.label for e in examples)
    all_shares = {"train": 1 - sum(shares.values()), **shares}
    plan = {name: {label: n * share for label, n in totals.items()} for name, share in all_shares.items()}
    placed: dict[str, Counter[int]] = {name: Counter() for name in plan}
    names: dict[str, str] = {}
    for group in sorted(groups, key=lambda name: _hash(name, salt)):
        labels = Counter(e.label for e in groups[group])
        best = min(plan, key=lambda name: _strain(labels, placed[name], plan[name]))
        placed[best] += labels
        names.update((e.key, best) for e in groups[group])
    return names


def _strain(added: Counter[int], placed: Counter[int], plan: dict[int, float]) -> float:
    """The growth of chi-squared between a split's labels and its plan when a group is added."""
    return sum(n * (2 * (placed[label] - plan[label]) + n) / plan[label] for label, n in added.items())


def _by_hash(examples: Iterable[Example], salt: str) -> list[Example]:
    return sorted(examples, key=lambda e: _hash(e.key, salt))


def _hash(text: str, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}\x1e{text}".encode()).digest()
