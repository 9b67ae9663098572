"""Tokenised rows of a split, and the order in which they form padded batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from ttmoe.batching import split_by_tokens
from ttmoe.conversation import Conversation
from ttmoe.encoding import Choice, Completion, Input, Item, Tokens, encode_inputs
from workers.data.examples import Example

# Rows are sorted by length within chunks of this many batches: little padding, and batches that still differ. With 32
# rows in a batch, nine of ten tokens are real on every task measured; with 20 batches, one task falls to 0.86.
SORT_CHUNK_BATCHES = 50


class StateSource(Protocol):
    """Stored trunk states of a split's sequences.

    Sequences are numbered over the split: row by row, and within a row option by option.
    """

    @property
    def depth(self) -> int:
        """Number of base layers that the stored states have passed through."""

    def gather(self, sequences: Sequence[int], device: torch.device | str) -> Tensor:
        """Return states (sequences, longest sequence, width) in the base's dtype, zero-padded on the right."""


@dataclass(frozen=True)
class TokenizedRows:
    """The tokenised rows of one split.

    Attributes:
        items: Token ids of each row.
        labels: Label of each row: a class index, or the index of the right option.
        states: Stored trunk states of the rows, if any.
    """

    items: list[Item]
    labels: list[int]
    states: StateSource | None = None

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens in the longest sequence of each row."""
        return [item.length for item in self.items]

    @cached_property
    def longest(self) -> int:
        """Tokens in the longest sequence of all rows."""
        return max(self.lengths)

    @cached_property
    def token_counts(self) -> list[int]:
        """Tokens in all sequences of each row together."""
        return [sum(len(tokens["input_ids"]) for tokens in item_sequences(item)) for item in self.items]

    @cached_property
    def sequence_counts(self) -> list[int]:
        """Number of sequences of each row."""
        return [len(item_sequences(item)) for item in self.items]

    @cached_property
    def sequence_offsets(self) -> list[int]:
        """Number of the first sequence of each row, and as the last element the number of all sequences."""
        return list(accumulate(self.sequence_counts, initial=0))

    @cached_property
    def longest_answer(self) -> int:
        """Tokens of the longest answer of all rows; 0 if they have none."""
        return max((length for item in self.items for length in item.answer_lengths), default=0)

    @cached_property
    def last_answers(self) -> list[int]:
        """Tokens of the last answer of each row, if rows have several: the one that an expert is asked for."""
        return [item.answer_lengths[-1] if item.turns else item.answer_length for item in self.items]

    def first(self, count: int) -> TokenizedRows:
        """Return the first ``count`` rows; the numbers of their sequences stay valid for ``states``."""
        return self if count >= len(self) else TokenizedRows(self.items[:count], self.labels[:count], self.states)

    def sequence_numbers(self, rows: Sequence[int]) -> list[int]:
        """Return the sequence numbers of these rows, in order."""
        offsets = self.sequence_offsets
        return [number for row in rows for number in range(offsets[row], offsets[row + 1])]

    def gather_states(self, rows: Sequence[int], device: torch.device | str) -> Tensor | None:
        """Return stored trunk states (sequences of these rows, longest sequence, width), None if none are stored."""
        return self.states.gather(self.sequence_numbers(rows), device) if self.states else None


def item_sequences(item: Item) -> tuple[Tokens, ...]:
    """Return the sequences an expert reads of a row: its options, a prompt and answer, a conversation, or the row."""
    return item.options or (item.whole,)


def to_input(example: Example) -> Input:
    """Return the model input of an example; in a task that generates text it includes the answer."""
    if example.messages:
        return Conversation(example.messages)
    if example.answer:
        return Completion(example.texts[0], example.answer)
    if example.choices:
        return Choice(example.texts[0], example.choices)
    return example.texts[0] if len(example.texts) == 1 else example.texts


def tokenize(tokenizer: Any, examples: Sequence[Example], max_length: int) -> TokenizedRows:
    """Tokenise examples, truncated to ``max_length`` tokens."""
    items = encode_inputs(tokenizer, [to_input(example) for example in examples], max_length)
    return TokenizedRows(items, [example.label for example in examples])


def training_batches(rows: TokenizedRows, size: int, seed: int, max_tokens: int | None = None) -> Iterator[list[int]]:
    """Yield batches of row numbers, epoch after epoch without end.

    The order depends only on the arguments. To resume at step n, skip n batches: only row numbers are shuffled and
    sorted, no row is read.

    Args:
        rows: Rows to draw from.
        size: Rows in a batch, without ``max_tokens``.
        seed: Seed of the order.
        max_tokens: Padded tokens in a batch. A longer row forms a batch of its own.

    Raises:
        ValueError: If there are no rows.
    """
    if not len(rows):
        raise ValueError("there are no rows to train on")
    shuffle = random.Random(seed)
    mean_rows = size if max_tokens is None else max(1, max_tokens * len(rows) // sum(rows.token_counts))
    chunk = SORT_CHUNK_BATCHES * mean_rows
    while True:
        order = list(range(len(rows)))
        shuffle.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), chunk):
            part = sorted(order[start : start + chunk], key=rows.lengths.__getitem__)
            if max_tokens is None:
                batches += [part[i : i + size] for i in range(0, len(part), size)]
            else:
                batches += token_batches(rows, part, max_tokens)
        shuffle.shuffle(batches)
        yield from batches


def token_batches(rows: TokenizedRows, order: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Split row numbers, in this order, into batches of at most ``max_tokens`` padded tokens.

    A longer row forms a batch of its own.
    """
    return split_by_tokens(order, rows.lengths, rows.sequence_counts, max_tokens)


def longest_first(rows: TokenizedRows) -> list[int]:
    """Return all row numbers, longest row first: a batch too large for the memory then fails at once."""
    return sorted(range(len(rows)), key=lambda row: -rows.lengths[row])
