"""Texts to padded token batches, and hidden states back to one vector for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttmoe.errors import InputError


@dataclass(frozen=True)
class Choice:
    """A text and the options to choose among."""

    text: str
    options: tuple[str, ...]


Input = str | tuple[str, ...] | Choice
"""What a row may be: one text, a pair of texts that are read together, or a choice among options."""

Tokens = dict[str, list[int]]


@dataclass(frozen=True)
class Item:
    """A row as token ids: the ``whole`` input, which the router reads, and each option beside the text, if any."""

    whole: Tokens
    options: tuple[Tokens, ...] = ()

    @property
    def length(self) -> int:
        """Tokens in its longest sequence."""
        return max(len(tokens["input_ids"]) for tokens in (self.options or (self.whole,)))


def encode_inputs(tokenizer: Any, inputs: Sequence[Input], max_length: int) -> list[Item]:
    """Token ids of every input, cut at ``max_length`` tokens, not yet padded."""
    wholes = [(i.text, " ".join(i.options)) if isinstance(i, Choice) else i for i in inputs]
    options = [(i.text, option) for i in inputs if isinstance(i, Choice) for option in i.options]
    tokens, rest = encode(tokenizer, wholes, max_length), iter(encode(tokenizer, options, max_length))
    return [
        Item(whole, tuple(next(rest) for _ in row.options) if isinstance(row, Choice) else ())
        for whole, row in zip(tokens, inputs, strict=True)
    ]


def encode(tokenizer: Any, texts: Sequence[str | tuple[str, ...]], max_length: int) -> list[Tokens]:
    """Token ids of each text or pair, cut at ``max_length`` tokens, not yet padded.

    Raises InputError for a row of no texts or more than two.
    """
    wrong = next((text for text in texts if not isinstance(text, str) and len(text) not in (1, 2)), None)
    if wrong is not None:
        raise InputError(f"a row has {len(wrong)} texts", where="inputs", fix="give one text, or a pair of texts")
    pairs = [(text, None) if isinstance(text, str) else (text[0], text[1] if len(text) > 1 else None) for text in texts]
    encoded: list[Tokens] = [{}] * len(pairs)
    for paired in (False, True):  # a fast tokenizer takes a batch of texts or a batch of pairs, not both
        where = [i for i, pair in enumerate(pairs) if (pair[1] is not None) == paired]
        if where:
            seconds = [pairs[i][1] for i in where] if paired else None
            batch = tokenizer([pairs[i][0] for i in where], seconds, truncation=True, max_length=max_length,
                              return_attention_mask=False)  # fmt: skip
            for row, i in enumerate(where):
                encoded[i] = {key: values[row] for key, values in batch.items()}
    return encoded


def collate(rows: Sequence[Tokens], pad_id: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Rows padded on the right to the longest of them: ``input_ids``, ``attention_mask`` and what else they hold.

    Each is (rows, tokens) and of dtype int64.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad_id}
    batch = {
        key: torch.tensor([row[key] + [fill.get(key, 0)] * (longest - len(row[key])) for row in rows])
        for key in rows[0]
    }
    batch["attention_mask"] = torch.tensor(
        [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    )
    return {key: value.to(device) for key, value in batch.items()}


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """One fp32 vector for each row of states (rows, tokens, width): the ``mean`` over real tokens, or the ``last``."""
    if how == "last":
        ends = mask.sum(1) - 1
        return states[torch.arange(len(states), device=states.device), ends].float()
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


def pad_id_of(tokenizer: Any) -> int:
    """The id that fills short rows: the pad token's, or the end token's where a causal tokenizer has none."""
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return getattr(tokenizer, name)
    return 0
