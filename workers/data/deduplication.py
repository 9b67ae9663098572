"""Repeated inputs are kept once, and groups that share an input become one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from workers.data.examples import Example

RemovedCounts = Counter[str]
"""How many examples were taken out: ``duplicates``, ``conflicts`` (inputs whose labels tie), ``leaked``."""


def deduplicate(examples: Iterable[Example]) -> tuple[list[Example], RemovedCounts]:
    """One example for each input, with the label of most of its rows; an input whose labels tie is dropped.

    Of written answers the commonest is kept, and of those that tie the smallest: a prompt may have several.
    Groups that share an input become one. The second value counts ``duplicates`` and ``conflicts``.
    """
    by_key: dict[str, list[Example]] = defaultdict(list)
    for example in merge_groups(examples):
        by_key[example.key].append(example)
    unique: list[Example] = []
    removed = RemovedCounts(duplicates=0, conflicts=0)
    for rows in by_key.values():
        ranked = Counter(row.label for row in rows).most_common(2)
        if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
            removed["conflicts"] += len(rows)
            continue
        # Spellings may differ; the smallest is kept, because the first would depend on the rows' order.
        some = [row for row in rows if row.label == ranked[0][0]]
        answers = Counter(row.answer for row in some)
        unique.append(min(some, key=lambda r: (-answers[r.answer], r.answer, r.texts, r.choices)))
        removed["duplicates"] += len(rows) - 1
    return unique, removed


def merge_groups(examples: Iterable[Example]) -> list[Example]:
    """The examples; groups that share an input take the smallest of their names, directly or by others."""
    examples = list(examples)
    if not any(example.group for example in examples):
        return examples
    parent = {example.group: example.group for example in examples}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group] = parent[parent[group]]
        return group

    first: dict[str, str] = {}
    for example in examples:
        one, other = sorted((root(first.setdefault(example.key, example.group)), root(example.group)))
        parent[other] = one
    return [replace(example, group=root(example.group)) for example in examples]
