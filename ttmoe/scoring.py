"""Scores of rows of every kind: classes of a text or pair, options of a choice, answer tokens of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.encoding import Item, Tokens, collate, pool
from ttmoe.language_head import answer_scores


@dataclass(frozen=True)
class BatchScores:
    """The scores of a batch in a few tensors. To cut them into rows takes several operations for each row.

    Attributes:
        heads: Scores of the sequences from the heads, (sequences, largest number of outputs), fp32.
        answers: Scores of the answer tokens of all rows, (answer tokens, 2), fp32, as ``score`` returns them of a row.
        outputs: Number of outputs of each row's expert.
        sequences: Number of sequences of each row.
        answer_lengths: Number of answer tokens of each row whose expert generates text, else 0.
    """

    heads: Tensor
    answers: Tensor
    outputs: list[int]
    sequences: list[int]
    answer_lengths: list[int]

    def split(self, sizes: Sequence[int]) -> list[BatchScores]:
        """Split the batch into parts of so many rows, in order."""
        parts = [slice(*bounds) for bounds in pairwise(accumulate(sizes, initial=0))]
        heads = self.heads.split([sum(self.sequences[part]) for part in parts])
        answers = self.answers.split([sum(self.answer_lengths[part]) for part in parts])
        return [BatchScores(head, answer, self.outputs[part], self.sequences[part], self.answer_lengths[part])
                for part, head, answer in zip(parts, heads, answers, strict=True)]  # fmt: skip

    def rows(self) -> list[Tensor]:
        """Return the scores of each row, as ``score`` does."""
        heads, answers = self.heads.split(self.sequences), self.answers.split(self.answer_lengths)
        return [answer if not outputs else part[:, 0] if outputs == 1 else part[0, :outputs]
                for part, answer, outputs in zip(heads, answers, self.outputs, strict=True)]  # fmt: skip


def score(bank: Bank, items: Sequence[Item], names: Sequence[str] | str, pad_id: int, *, states: Tensor | None = None,
          depth: int = 0, dropout_keys: Tensor | None = None) -> list[Tensor]:  # fmt: skip
    """Score each row through its expert. Rows of different kinds and experts share one batch.

    An expert with one output reads the sequence of each option; an expert with more outputs reads the whole row; an
    expert without outputs, which generates text, reads a completion's prompt and answer.

    Args:
        bank: The bank.
        items: The rows.
        names: The expert of each row, or one name for all.
        pad_id: Id that fills the padded sequences.
        states: Trunk states (sequences, tokens, width) of the sequences that the experts read, row after row. If None
            and ``depth`` is above 0, they are computed here, without gradients and without dropout.
        depth: Depth of the trunk that gave ``states``.
        dropout_keys: Keys of the sequences (sequences, 2), as ``Bank`` takes them.

    Returns:
        For each row fp32 scores: (classes,) from an expert with classes; (options,) from an expert with one output;
        (answer tokens, 2) from an expert that generates text, with the log-probability of each token and the largest at
        its position. If both are equal throughout, greedy decoding generates this answer, except for ties. A row that
        is no completion has (0, 2).

    Raises:
        InputError: If an expert is not loaded or adapts a layer below ``depth``.
    """
    if not items:
        return []
    return score_batch(bank, items, names, pad_id, states=states, depth=depth, dropout_keys=dropout_keys).rows()


def score_batch(bank: Bank, items: Sequence[Item], names: Sequence[str] | str, pad_id: int, *,
                states: Tensor | None = None, depth: int = 0,
                dropout_keys: Tensor | None = None) -> BatchScores:  # fmt: skip
    """Score rows as ``score`` does, at least one, without cutting the scores into rows."""
    row_names = [names] * len(items) if isinstance(names, str) else list(names)
    outputs_of = {name: bank.expert(name).head.out_features for name in dict.fromkeys(row_names)}
    outputs = [outputs_of[name] for name in row_names]
    read = [_sequences(item, count) for item, count in zip(items, outputs, strict=True)]
    counts, tokens = [len(row) for row in read], [sequence for row in read for sequence in row]
    inputs = collate(tokens, pad_id, bank.device)
    if depth and states is None:
        states = bank.trunk(depth).states(inputs)
    sequence_names = names if isinstance(names, str) else [
        name for name, count in zip(row_names, counts, strict=True) for _ in range(count)]  # fmt: skip
    hidden = bank.last_hidden_state(inputs, sequence_names, states=states, depth=depth, dropout_keys=dropout_keys)
    answers, answer_lengths = hidden.new_zeros(0, 2, dtype=torch.float32), [0] * len(items)
    if not all(outputs):  # an expert that generates text reads one sequence of a row
        answer_lengths = [0 if count else item.answer_length for item, count in zip(items, outputs, strict=True)]
        of_sequences = [length for length, count in zip(answer_lengths, counts, strict=True) for _ in range(count)]
        lengths = [len(sequence["input_ids"]) for sequence in tokens]
        answers = answer_scores(bank.language_head, hidden, inputs, lengths, of_sequences)
    features = pool(hidden, inputs["attention_mask"], bank.pooling)
    heads = bank.head_scores(features, sequence_names, dropout_keys)
    return BatchScores(heads, answers, outputs, counts, answer_lengths)


def _sequences(item: Item, outputs: int) -> tuple[Tokens, ...]:
    """Return the sequences of a row that an expert with this number of outputs reads."""
    reads_options = outputs == 1 and not item.answer_length if outputs else bool(item.answer_length)
    return item.options if reads_options and item.options else (item.whole,)
