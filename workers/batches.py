"""Rows to batches: tokenised once, grouped by length, padded to the longest row of each batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ttmoe.encoding import Choice, Input, Item, encode_inputs
from workers.examples import Example

# Rows are sorted by length within chunks of this many batches: little padding, and batches that still differ.
CHUNK = 50


@dataclass(frozen=True)
class Rows:
    """The tokenised rows of one split, and their labels."""

    items: list[Item]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.items)


def as_input(example: Example) -> Input:
    """What the model reads of an example."""
    if example.choices:
        return Choice(example.texts[0], example.choices)
    return example.texts[0] if len(example.texts) == 1 else example.texts


def tokenise(tokenizer: Any, examples: Sequence[Example], max_length: int) -> Rows:
    """Encode every example once."""
    items = encode_inputs(tokenizer, [as_input(example) for example in examples], max_length)
    return Rows(items, [example.label for example in examples])


def training_batches(rows: Rows, size: int, seed: int) -> Iterator[list[int]]:
    """Row numbers, batch after batch and epoch after epoch without end; the order follows from ``seed`` alone."""
    shuffle = random.Random(seed)
    while True:
        order = list(range(len(rows)))
        shuffle.shuffle(order)
        batches = []
        for start in range(0, len(order), size * CHUNK):
            chunk = sorted(order[start : start + size * CHUNK], key=lambda i: rows.items[i].length)
            batches += [chunk[i : i + size] for i in range(0, len(chunk), size)]
        shuffle.shuffle(batches)
        yield from batches


def evaluation_batches(items: Sequence[Item], size: int) -> Iterator[list[int]]:
    """Every row once, longest first, so that a batch too large for the memory fails at once."""
    order = sorted(range(len(items)), key=lambda i: -items[i].length)
    yield from (order[i : i + size] for i in range(0, len(order), size))
