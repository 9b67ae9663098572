"""Scores of rows of every kind: classes of a text or pair, options of a choice, answer tokens of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.encoding import Item, Tokens, collate, pool
from ttmoe.language_head import answer_scores


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
    row_names = [names] * len(items) if isinstance(names, str) else list(names)
    outputs = {name: bank.expert(name).head.out_features for name in dict.fromkeys(row_names)}
    sequences = [_sequences(item, outputs[name]) for item, name in zip(items, row_names, strict=True)]
    counts = [len(row) for row in sequences]
    inputs = collate([tokens for row in sequences for tokens in row], pad_id, bank.device)
    if depth and states is None:
        states = bank.trunk(depth).states(inputs)
    sequence_names = names if isinstance(names, str) else [
        name for name, count in zip(row_names, counts, strict=True) for _ in range(count)]  # fmt: skip
    hidden = bank.last_hidden_state(inputs, sequence_names, states=states, depth=depth, dropout_keys=dropout_keys)
    answers: list[Tensor] = []
    if not all(outputs.values()):
        rows = zip(items, row_names, counts, strict=True)
        lengths = [0 if outputs[name] else item.answer_length for item, name, count in rows for _ in range(count)]
        answers = answer_scores(bank.language_head, hidden, inputs, lengths)
    features = pool(hidden, inputs["attention_mask"], bank.pooling)
    parts = bank.head_scores(features, sequence_names, dropout_keys).split(counts)
    firsts = accumulate(counts, initial=0)
    return [_row_scores(part, outputs[name]) if outputs[name] else answers[first]
            for part, name, first in zip(parts, row_names, firsts, strict=False)]  # fmt: skip


def _sequences(item: Item, outputs: int) -> tuple[Tokens, ...]:
    """Return the sequences of a row that an expert with this number of outputs reads."""
    reads_options = outputs == 1 and not item.answer_length if outputs else bool(item.answer_length)
    return item.options if reads_options and item.options else (item.whole,)


def _row_scores(part: Tensor, outputs: int) -> Tensor:
    return part[:, 0] if outputs == 1 else part[0, :outputs]
