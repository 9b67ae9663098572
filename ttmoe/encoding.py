"""Texts to padded token batches, and hidden states back to one vector for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@dataclass(frozen=True)
class Completion:
    """A prompt and the text that answers it: a row to learn from. To ask, the prompt alone is a text as any other."""

    prompt: str
    answer: str


Input = str | tuple[str, ...] | Choice | Completion
"""What a row may be: one text, a pair of texts that are read together, a choice among options, or a completion."""

Tokens = dict[str, list[int]]


@dataclass(frozen=True)
class Item:
    """A row as token ids: the ``whole`` input, which the router reads, and each option beside the text, if any.

    A completion has one option, prompt and answer, of which the last ``answer`` tokens are the answer and its end.
    """

    whole: Tokens
    options: tuple[Tokens, ...] = ()
    answer: int = 0

    @property
    def length(self) -> int:
        """Tokens in its longest sequence."""
        return max(len(tokens["input_ids"]) for tokens in (self.options or (self.whole,)))


def encode_inputs(tokenizer: Any, inputs: Sequence[Input], max_length: int) -> list[Item]:
    """Token ids of every input, cut at ``max_length`` tokens, not yet padded.

    Of a completion the prompt gives way, from its beginning. Raises InputError for an answer that leaves it no room.
    """
    wholes = [_whole(row) for row in inputs]
    options = [(i.text, option) for i in inputs if isinstance(i, Choice) for option in i.options]
    tokens, rest = encode(tokenizer, wholes, max_length), iter(encode(tokenizer, options, max_length))
    completed = iter(_complete(tokenizer, [row for row in inputs if isinstance(row, Completion)], max_length))
    items = []
    for whole, row in zip(tokens, inputs, strict=True):
        if isinstance(row, Completion):
            both, answer = next(completed)
            items.append(Item(whole, (both,), answer))
        else:
            items.append(Item(whole, tuple(next(rest) for _ in row.options) if isinstance(row, Choice) else ()))
    return items


def _whole(row: Input) -> str | tuple[str, ...]:
    """What the router reads of a row."""
    if isinstance(row, Choice):
        return row.text, " ".join(row.options)
    return row.prompt if isinstance(row, Completion) else row


def encode_prompts(tokenizer: Any, prompts: Sequence[str], rooms: Sequence[int]) -> list[Tokens]:
    """Token ids of texts that are to be gone on from, each cut on the left to so many tokens (1 or more).

    An end token that the tokenizer puts behind every text is left out.
    """
    if not prompts:
        return []
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    closes = whole[-1] == end_id_of(tokenizer) and whole[-len(bare) :] != bare
    with _cutting_on_the_left(tokenizer):
        found = encode(tokenizer, prompts, max(rooms) + closes)
        for i, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
            if len(found[i]["input_ids"]) > room + closes:
                found[i] = encode(tokenizer, [prompt], room + closes)[0]
    return [{key: values[: len(values) - closes] for key, values in row.items()} for row in found]


def _complete(tokenizer: Any, rows: Sequence[Completion], max_length: int) -> list[tuple[Tokens, int]]:
    """Prompt, answer and end token of each row in ``max_length`` tokens, and the number of the last two."""
    if not rows:
        return []
    end = end_id_of(tokenizer)
    # The blank is what most tokenizers expect before a word; neither a config's cells nor what is written keep one.
    spoken = tokenizer([f" {row.answer}" for row in rows], add_special_tokens=False)["input_ids"]
    answers = [[*ids, end] for ids in spoken]
    longest = max(map(len, answers))
    if longest >= max_length:
        raise InputError(f"an answer has {longest} tokens, and prompt and answer together may have {max_length}",
                         where="base.max_length", fix=f"raise it well above {longest}, or leave rows out")  # fmt: skip
    prompts = encode_prompts(tokenizer, [row.prompt for row in rows], [max_length - len(ids) for ids in answers])
    return [
        ({key: values + (ids if key == "input_ids" else [0] * len(ids)) for key, values in prompt.items()}, len(ids))
        for prompt, ids in zip(prompts, answers, strict=True)
    ]


@contextmanager
def _cutting_on_the_left(tokenizer: Any) -> Iterator[None]:
    before = tokenizer.truncation_side
    tokenizer.truncation_side = "left"
    try:
        yield
    finally:
        tokenizer.truncation_side = before


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


def collate(rows: Sequence[Tokens], pad_id: int, device: torch.device | str = "cpu", *,
            left: bool = False) -> dict[str, Tensor]:  # fmt: skip
    """Rows padded on the right to the longest of them: ``input_ids``, ``attention_mask`` and what else they hold.

    Each is (rows, tokens) and of dtype int64. On the ``left`` are rows padded that are to be gone on from.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[int], filling: int) -> list[int]:
        fill = [filling] * (longest - len(values))
        return fill + values if left else values + fill

    batch = {key: torch.tensor([padded(row[key], pad_id if key == "input_ids" else 0) for row in rows])
             for key in rows[0]}  # fmt: skip
    batch["attention_mask"] = torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows])
    return {key: value.to(device) for key, value in batch.items()}


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """One fp32 vector for each row of states (rows, tokens, width): the ``mean`` over real tokens, or the ``last``."""
    if how == "last":
        ends = mask.sum(1) - 1
        return states[torch.arange(len(states), device=states.device), ends].float()
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


def end_id_of(tokenizer: Any) -> int:
    """The id that ends a text. Raises InputError for a tokenizer that has none."""
    end = getattr(tokenizer, "eos_token_id", None)
    if end is None:
        raise InputError("the base's tokenizer has no end token: what an expert writes would never end", where="base",
                         fix="set eos_token in its tokenizer_config.json")  # fmt: skip
    return int(end)


def pad_id_of(tokenizer: Any) -> int:
    """The id that fills short rows: the pad token's, or the end token's where a causal tokenizer has none."""
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return getattr(tokenizer, name)
    return 0
