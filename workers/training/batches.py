"""Rows to batches: tokenised once, grouped by length, padded to the longest row of each batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from ttmoe.encoding import Choice, Completion, Input, Item, Tokens, encode_inputs
from workers.data.examples import Example

# Rows are sorted by length within chunks of this many batches: little padding, and batches that still differ. With 32
# rows in a batch nine tokens of ten are real on every task that we have; within 20 batches one task falls to 0.86.
SORT_CHUNK_BATCHES = 50


class StateSource(Protocol):
    """The trunk's states of a split's sequences, kept somewhere: row after row, a row's options in their order."""

    @property
    def depth(self) -> int:
        """The number of layers below."""

    def gather(self, sequences: Sequence[int], device: torch.device | str) -> Tensor:
        """States (len(sequences), longest of them, width) in the base's dtype, filled with zeros on the right."""


@dataclass(frozen=True)
class TokenizedRows:
    """The tokenised rows of one split, their labels, and their trunk's states where these are kept."""

    items: list[Item]
    labels: list[int]
    states: StateSource | None = None

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens in each row's longest sequence."""
        return [item.length for item in self.items]

    @cached_property
    def tokens(self) -> list[int]:
        """Tokens in all of each row's sequences."""
        return [sum(len(tokens["input_ids"]) for tokens in item_sequences(item)) for item in self.items]

    @cached_property
    def starts(self) -> list[int]:
        """The number of each row's first sequence; behind the last row, the number of all sequences."""
        return list(accumulate((len(item_sequences(item)) for item in self.items), initial=0))

    def sequence_numbers(self, rows: Sequence[int]) -> list[int]:
        """The numbers of the rows' sequences, counted over the whole split."""
        return [number for row in rows for number in range(self.starts[row], self.starts[row + 1])]

    def gather_states(self, rows: Sequence[int], device: torch.device | str) -> Tensor | None:
        """The trunk's states of the rows' sequences, where they are kept."""
        return self.states.gather(self.sequence_numbers(rows), device) if self.states else None


def item_sequences(item: Item) -> tuple[Tokens, ...]:
    """What an expert on this kind of row reads: each option of a choice, a prompt with its answer, or the whole."""
    return item.options or (item.whole,)


def to_input(example: Example) -> Input:
    """What the model reads of an example, or learns to write."""
    if example.answer:
        return Completion(example.texts[0], example.answer)
    if example.choices:
        return Choice(example.texts[0], example.choices)
    return example.texts[0] if len(example.texts) == 1 else example.texts


def tokenize(tokenizer: Any, examples: Sequence[Example], max_length: int) -> TokenizedRows:
    """Encode every example once."""
    items = encode_inputs(tokenizer, [to_input(example) for example in examples], max_length)
    return TokenizedRows(items, [example.label for example in examples])


def training_batches(rows: TokenizedRows, size: int, seed: int, tokens: int | None = None) -> Iterator[list[int]]:
    """Row numbers, batch after batch and epoch after epoch without end; the order follows from ``seed`` alone.

    Batches have ``size`` rows, or with ``tokens`` at most so many padded tokens (a longer row is a batch of its own).
    To start at step n, skip n batches: that sorts numbers and touches no row. Raises ValueError where there are no
    rows.
    """
    if not len(rows):
        raise ValueError("there are no rows to train on")
    shuffle = random.Random(seed)
    # Chunks by tokens hold as many rows as fill CHUNK batches on average.
    chunk = SORT_CHUNK_BATCHES * (size if tokens is None else max(1, tokens * len(rows) // sum(rows.tokens)))
    while True:
        order = list(range(len(rows)))
        shuffle.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), chunk):
            part = sorted(order[start : start + chunk], key=rows.lengths.__getitem__)
            if tokens is None:
                batches += [part[i : i + size] for i in range(0, len(part), size)]
            else:
                batches += token_batches(rows, part, tokens)
        shuffle.shuffle(batches)
        yield from batches


def token_batches(rows: TokenizedRows, order: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """The rows in this order, in batches of at most ``tokens`` padded tokens; a longer row is a batch of its own."""
    batch: list[int] = []
    longest = sequences = 0
    for row in order:
        count = rows.starts[row + 1] - rows.starts[row]
        if batch and (sequences + count) * max(longest, rows.lengths[row]) > tokens:
            yield batch
            batch, longest, sequences = [], 0, 0
        batch.append(row)
        longest, sequences = max(longest, rows.lengths[row]), sequences + count
    if batch:
        yield batch


def longest_first(rows: TokenizedRows) -> list[int]:
    """Row numbers by length, so that a batch too large for the memory fails at once."""
    return sorted(range(len(rows)), key=lambda row: -rows.lengths[row])


def evaluation_batches(items: Sequence[Item], size: int) -> Iterator[list[int]]:
    """Every row once in batches of ``size`` rows, the longest first."""
    order = sorted(range(len(items)), key=lambda i: -items[i].length)
    yield from (order[i : i + size] for i in range(0, len(order), size))
