"""Remove repeated inputs, and merge groups that share an input."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from workers.data.examples import Example

RemovedCounts = Counter[str]
"""Number of removed examples by reason: ``duplicates``, ``conflicts`` (inputs whose labels tie) and ``leaked``."""


def deduplicate(examples: Iterable[Example]) -> tuple[list[Example], RemovedCounts]:
    """Keep one example for each input, and merge groups that share an input.

    An input with several labels keeps its most frequent one; if the labels tie, the input is removed. An input with
    several answers (a prompt may have several) keeps the most frequent one; if they tie, the smallest.

    Returns:
        The remaining examples, and the numbers of removed ``duplicates`` and ``conflicts``.
    """
    by_key: dict[str, list[Example]] = defaultdict(list)
    for example in merge_groups(examples):
        by_key[example.key].append(example)
    unique: list[Example] = []
    removed = RemovedCounts(duplicates=0, conflicts=0)
    for repeats in by_key.values():
        ranked = Counter(example.label for example in repeats).most_common(2)
        if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
            removed["conflicts"] += len(repeats)
            continue
        # Spellings may differ; the smallest is kept, because the first would depend on the order of the rows.
        candidates = [example for example in repeats if example.label == ranked[0][0]]
        answers = Counter(example.answer for example in candidates)
        unique.append(min(candidates, key=lambda e: (-answers[e.answer], e.answer, e.texts, e.choices, e.messages)))
        removed["duplicates"] += len(repeats) - 1
    return unique, removed


def merge_groups(examples: Iterable[Example]) -> list[Example]:
    """Return the examples with merged groups: groups linked by shared inputs get the smallest of their names."""
    examples = list(examples)
    if not any(example.group for example in examples):
        return examples
    parent = {example.group: example.group for example in examples}  # union-find

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group] = parent[parent[group]]
        return group

    first_group: dict[str, str] = {}  # by key
    for example in examples:
        smaller, larger = sorted((root(first_group.setdefault(example.key, example.group)), root(example.group)))
        parent[larger] = smaller
    return [replace(example, group=root(example.group)) for example in examples]
