"""Scores of rows of every kind: classes of a text or pair, options of a choice, answer tokens of a generated text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.bank import Bank
from ttmoe.encoding import Item, Tokens, collate, pool
from ttmoe.language_head import answer_scores
from ttmoe.sequence_packing import Packing, RowSpan, allows_packing, pack_sequences
from ttmoe.transfer import to_device


@dataclass(frozen=True)
class ScoreInputs:
    """Rows on the device, ready to be scored.

    Attributes:
        tokens: The sequences that the experts read, padded: ``input_ids`` and the like, each (sequences, tokens). They
            may be packed, see ``ttmoe.sequence_packing``; then what is said of sequences here is said of packed rows,
            except for ``sequences``.
        states: Trunk states of the sequences (sequences, tokens, width), if they are known.
        depth: Depth of the trunk.
        dropout_keys: Keys of the sequences (sequences, 2), if any.
        names: The expert of each sequence, or one name for all.
        outputs: Number of outputs of each row's expert.
        sequences: Number of sequences of each row.
        answers: The answers of sequences whose expert generates text, in order of the rows: the sequence, the first
            token, and the token after the last one.
        answer_lengths: Number of answer tokens of each row whose expert generates text, else 0.
    """

    tokens: dict[str, Tensor]
    states: Tensor | None
    depth: int
    dropout_keys: Tensor | None
    names: list[str] | str
    outputs: list[int]
    sequences: list[int]
    answers: list[RowSpan]
    answer_lengths: list[int]


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
    expert without outputs, which generates text, reads a completion's prompt and answer, or a whole conversation.

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
        has no answer has (0, 2).

    Raises:
        InputError: If an expert is not loaded or adapts a layer below ``depth``.
    """
    if not items:
        return []
    inputs = score_inputs(bank, items, names, pad_id, states=states, depth=depth, dropout_keys=dropout_keys)
    return score_batch(bank, inputs).rows()


def score_inputs(bank: Bank, items: Sequence[Item], names: Sequence[str] | str, pad_id: int, *,
                 states: Tensor | None = None, depth: int = 0, dropout_keys: Tensor | None = None,
                 length: int = 0, packed_length: int = 0) -> ScoreInputs:  # fmt: skip
    """Put rows on the device for ``score_batch``.

    Args:
        bank: As ``score`` takes it; so are ``items`` (at least one), ``names``, ``pad_id``, ``states``, ``depth`` and
            ``dropout_keys``.
        items: The rows.
        names: The expert of each row, or one name for all.
        pad_id: Id that fills the padded sequences.
        states: Trunk states of the sequences.
        depth: Depth of the trunk.
        dropout_keys: Keys of the sequences.
        length: Tokens to pad the sequences to, if the longest one has fewer.
        packed_length: Pack the sequences into rows of at most so many tokens, if all experts generate text and drop
            nothing, the base allows it, and it saves enough tokens; 0 packs none.
    """
    row_names = [names] * len(items) if isinstance(names, str) else list(names)
    outputs_of = {name: bank.expert(name).head.out_features for name in dict.fromkeys(row_names)}
    outputs = [outputs_of[name] for name in row_names]
    read = [_sequences(item, count) for item, count in zip(items, outputs, strict=True)]
    counts, tokens = [len(row) for row in read], [sequence for row in read for sequence in row]
    answer_lengths = [0 if count else item.answer_length for item, count in zip(items, outputs, strict=True)]
    firsts = accumulate(counts, initial=0)
    answers = [(first, *span) for item, count, first in zip(items, outputs, firsts, strict=False) if not count
               for span in item.answers]  # fmt: skip
    if packed_length and (packing := _find_packing(bank, tokens, row_names, outputs_of, length, packed_length)):
        return ScoreInputs(
            tokens=packing.collate(tokens, pad_id, bank.device),
            states=None if states is None else packing.gather(states),
            depth=depth,
            dropout_keys=None,
            names=names if isinstance(names, str) else packing.names(row_names),
            outputs=outputs,
            sequences=counts,
            answers=packing.spans(answers),
            answer_lengths=answer_lengths,
        )
    inputs = collate(tokens, pad_id, bank.device, length=length)
    sequence_names = names if isinstance(names, str) else [
        name for name, count in zip(row_names, counts, strict=True) for _ in range(count)]  # fmt: skip
    missing = inputs["attention_mask"].shape[1] - states.shape[1] if states is not None else 0
    return ScoreInputs(
        tokens=inputs,
        states=F.pad(states, (0, 0, 0, missing)) if states is not None and missing > 0 else states,
        depth=depth,
        dropout_keys=None if dropout_keys is None else to_device(dropout_keys, bank.device),
        names=sequence_names,
        outputs=outputs,
        sequences=counts,
        answers=answers,
        answer_lengths=answer_lengths,
    )


def _find_packing(bank: Bank, tokens: Sequence[Tokens], names: Sequence[str], outputs: dict[str, int],
                  length: int, most: int) -> Packing | None:  # fmt: skip
    """Return how to pack the sequences, one for each row, or None if they must not be or it does not pay."""
    drop = any(bank.expert(name).adapter.spec.dropout for name in outputs)  # its masks are those of a row's tokens
    if any(outputs.values()) or drop or not allows_packing(bank.model) or tokens[0].keys() != {"input_ids"}:
        return None
    lengths = [len(sequence["input_ids"]) for sequence in tokens]
    return pack_sequences(lengths, names, max(length, *lengths), most)


def score_batch(bank: Bank, inputs: ScoreInputs) -> BatchScores:
    """Score rows as ``score`` does, without cutting the scores into rows. No value is read on the host."""
    tokens, states, names, keys = inputs.tokens, inputs.states, inputs.names, inputs.dropout_keys
    if inputs.depth and states is None:
        states = bank.trunk(inputs.depth).states(tokens)
    hidden = bank.last_hidden_state(tokens, names, states=states, depth=inputs.depth, dropout_keys=keys)
    answers = hidden.new_zeros(0, 2, dtype=torch.float32)
    if any(inputs.answer_lengths):
        answers = answer_scores(bank.language_head, hidden, tokens, inputs.answers)
    if any(inputs.outputs):
        heads = bank.head_scores(pool(hidden, tokens["attention_mask"], bank.pooling), names, keys)
    else:
        heads = hidden.new_zeros(sum(inputs.sequences), 0, dtype=torch.float32)
    return BatchScores(heads, answers, inputs.outputs, inputs.sequences, inputs.answer_lengths)


def _sequences(item: Item, outputs: int) -> tuple[Tokens, ...]:
    """Return the sequences of a row that an expert with this number of outputs reads."""
    reads_options = outputs == 1 and not item.answer_length if outputs else bool(item.answer_length)
    return item.options if reads_options and item.options else (item.whole,)
