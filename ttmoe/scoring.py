"""Scores for whole rows, whatever their kind: classes of a text or pair, options of a choice, tokens of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.encoding import Item, Tokens, collate, pool
from ttmoe.language_head import answer_scores


def score(bank: Bank, items: Sequence[Item], names: Sequence[str] | str, pad_id: int, *, states: Tensor | None = None,
          depth: int = 0) -> list[Tensor]:  # fmt: skip
    """Each item's scores through the expert named for it: (classes,), or (options,) where the expert chooses.

    An expert with a single output reads each option beside the text; any other reads the whole input once. An expert
    without outputs writes: of a completion it gives (answer tokens, 2), the log-probability of each and the largest at
    its place (where the two are equal all along, greedy decoding writes exactly this answer, but for ties), of any
    other input an empty (0, 2). ``states`` (sequences, tokens, width) are what the trunk of ``depth`` gave for these
    sequences, item after item; without them a ``depth`` has the trunk worked out here, without gradients and dropout:
    it is the same trunk, kept or not. Raises InputError for an expert that is not loaded, or that adapts a layer below
    ``depth``.
    """
    if not items:
        return []
    each = [names] * len(items) if isinstance(names, str) else list(names)
    outputs = {name: bank.expert(name).head.out_features for name in dict.fromkeys(each)}
    rows = [_read(item, outputs[name]) for item, name in zip(items, each, strict=True)]
    inputs = collate([tokens for row in rows for tokens in row], pad_id, bank.device)
    if depth and states is None:
        states = bank.trunk(depth).states(inputs)
    flat = names if isinstance(names, str) else [name for name, row in zip(each, rows, strict=True) for _ in row]
    top, sizes = bank.top(inputs, flat, states=states, depth=depth), [len(row) for row in rows]
    answers = [0 if outputs[name] else item.answer for item, name, size in zip(items, each, sizes, strict=True)
               for _ in range(size)]  # fmt: skip
    spoken = [] if all(outputs.values()) else answer_scores(bank.words, top, inputs, answers)
    parts = bank.judge(pool(top, inputs["attention_mask"], bank.pooling), flat).split(sizes)
    firsts = accumulate(sizes, initial=0)
    return [_scores(part, outputs[name]) if outputs[name] else spoken[first]
            for part, name, first in zip(parts, each, firsts, strict=False)]  # fmt: skip


def _read(item: Item, outputs: int) -> tuple[Tokens, ...]:
    """The sequences that an expert of so many outputs reads of a row."""
    by_options = bool(item.answer) if not outputs else outputs == 1 and not item.answer
    return item.options if by_options and item.options else (item.whole,)


def _scores(part: Tensor, outputs: int) -> Tensor:
    return part[:, 0] if outputs == 1 else part[0, :outputs]
