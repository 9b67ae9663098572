"""Conversion of input rows to token ids and padded batches, and pooling of hidden states to one vector per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttmoe.chat_template import ChatTemplate, Spans, Tokens
from ttmoe.conversation import Conversation
from ttmoe.errors import InputError
from ttmoe.transfer import to_device


@dataclass(frozen=True)
class Choice:
    """A text and the options to choose among."""

    text: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Completion:
    """A training row of an expert that generates text: a prompt and its answer.

    To generate an answer, pass the prompt alone, as a text.
    """

    prompt: str
    answer: str


Input = str | tuple[str, ...] | Choice | Completion | Conversation
"""An input row: a text, a pair of texts read together, a choice among options, a completion, or a conversation."""


@dataclass(frozen=True)
class Item:
    """A tokenized row.

    Attributes:
        whole: The sequence that the router reads, and every expert that does not read the options one by one.
        options: For a choice, one sequence per option: the text and the option. For a completion, one sequence: prompt,
            answer and end token. For a conversation that ends with an answer, one sequence in the chat template.
        answer_length: Number of tokens of its option that are answers, end tokens included; 0 without an answer.
        turns: Which tokens these are, if the option has several answers or other tokens after them; empty if they are
            its last tokens.
    """

    whole: Tokens
    options: tuple[Tokens, ...] = ()
    answer_length: int = 0
    turns: Spans = ()

    @property
    def answers(self) -> Spans:
        """The first token of each answer in the option, and the token after its last one."""
        end = len(self.options[0]["input_ids"]) if self.answer_length else 0
        return self.turns or (((end - self.answer_length, end),) if self.answer_length else ())

    @property
    def answer_lengths(self) -> list[int]:
        """Number of tokens of each answer."""
        return [end - start for start, end in self.answers]

    @property
    def length(self) -> int:
        """Tokens in the longest option, or in ``whole`` if there are no options."""
        return max(len(tokens["input_ids"]) for tokens in (self.options or (self.whole,)))


def encode_inputs(tokenizer: Any, inputs: Sequence[Input], max_length: int) -> list[Item]:
    """Tokenize rows of any kind, without padding.

    Sequences are truncated to ``max_length`` tokens on the right. A completion loses the beginning of its prompt
    instead, never a part of its answer, and a conversation as ``ChatTemplate.encode`` says.

    Raises:
        InputError: If a row has no text or more than two, an answer leaves no room for its prompt, or the base has no
            template for conversations.
    """
    choices = [(row.text, option) for row in inputs if isinstance(row, Choice) for option in row.options]
    wholes = encode(tokenizer, [_router_text(row) for row in inputs], max_length)
    options = iter(encode(tokenizer, choices, max_length))
    completions = iter(_encode_completions(tokenizer, [r for r in inputs if isinstance(r, Completion)], max_length))
    dialogues = [row for row in inputs if isinstance(row, Conversation) and row.answer]
    conversations = iter(ChatTemplate(tokenizer).encode(dialogues, max_length) if dialogues else ())
    items = []
    for whole, row in zip(wholes, inputs, strict=True):
        if isinstance(row, Conversation) and row.answer:
            tokens, turns = next(conversations)
            items.append(Item(whole, (tokens,), sum(end - start for start, end in turns), turns))
        elif isinstance(row, Completion):
            tokens, answer_length = next(completions)
            items.append(Item(whole, (tokens,), answer_length))
        else:
            items.append(Item(whole, tuple(next(options) for _ in row.options) if isinstance(row, Choice) else ()))
    return items


def _router_text(row: Input) -> str | tuple[str, ...]:
    """Return the text or pair that the router reads."""
    if isinstance(row, Choice):
        return row.text, " ".join(row.options)
    if isinstance(row, Conversation):
        return row.prompt.text
    return row.prompt if isinstance(row, Completion) else row


def encode_prompts(tokenizer: Any, prompts: Sequence[str], max_lengths: Sequence[int]) -> list[Tokens]:
    """Tokenize prompts that a model continues, without padding and without an end token.

    Args:
        tokenizer: The base's tokenizer.
        prompts: The prompts.
        max_lengths: For each prompt the number of tokens, 1 or more, to which it is truncated on the left.
    """
    if not prompts:
        return []
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    # 1 if the tokenizer appends an end token to every text; the end token is removed from the result.
    appended = whole[-1] == end_id_of(tokenizer) and whole[-len(bare) :] != bare
    with _truncating_left(tokenizer):
        encoded = encode(tokenizer, prompts, max(max_lengths) + appended)
        for i, (prompt, max_length) in enumerate(zip(prompts, max_lengths, strict=True)):
            if len(encoded[i]["input_ids"]) > max_length + appended:
                encoded[i] = encode(tokenizer, [prompt], max_length + appended)[0]
    return [{key: values[: len(values) - appended] for key, values in row.items()} for row in encoded]


def _encode_completions(tokenizer: Any, rows: Sequence[Completion], max_length: int) -> list[tuple[Tokens, int]]:
    """Tokenize prompt, answer and end token of each row, and count the tokens of the last two."""
    if not rows:
        return []
    end = end_id_of(tokenizer)
    # Most tokenizers expect a space before a word. Answers in the data and generated text are stripped of it.
    encoded = tokenizer([f" {row.answer}" for row in rows], add_special_tokens=False)["input_ids"]
    answers = [[*ids, end] for ids in encoded]
    longest = max(map(len, answers))
    if longest >= max_length:
        raise InputError(f"an answer has {longest} tokens, but prompt and answer together are limited to {max_length}",
                         where="base.max_length", fix=f"raise it well above {longest}, or leave rows out")  # fmt: skip
    prompts = encode_prompts(tokenizer, [row.prompt for row in rows], [max_length - len(ids) for ids in answers])
    return [
        ({key: values + (ids if key == "input_ids" else [0] * len(ids)) for key, values in prompt.items()}, len(ids))
        for prompt, ids in zip(prompts, answers, strict=True)
    ]


@contextmanager
def _truncating_left(tokenizer: Any) -> Iterator[None]:
    side = tokenizer.truncation_side
    tokenizer.truncation_side = "left"
    try:
        yield
    finally:
        tokenizer.truncation_side = side


def encode(tokenizer: Any, texts: Sequence[str | tuple[str, ...]], max_length: int) -> list[Tokens]:
    """Tokenize texts and pairs of texts, truncated to ``max_length`` tokens, without padding.

    Raises:
        InputError: If a tuple has no text or more than two.
    """
    invalid = next((text for text in texts if not isinstance(text, str) and len(text) not in (1, 2)), None)
    if invalid is not None:
        raise InputError(f"a row has {len(invalid)} texts", where="inputs", fix="give one text, or a pair of texts")
    pairs = [(text, None) if isinstance(text, str) else (text[0], text[1] if len(text) > 1 else None) for text in texts]
    encoded: list[Tokens] = [{}] * len(pairs)
    for paired in (False, True):  # a fast tokenizer accepts a batch of texts or a batch of pairs, not a mixed one
        rows = [i for i, pair in enumerate(pairs) if (pair[1] is not None) == paired]
        if rows:
            seconds = [pairs[i][1] for i in rows] if paired else None
            batch = tokenizer([pairs[i][0] for i in rows], seconds, truncation=True, max_length=max_length,
                              return_attention_mask=False)  # fmt: skip
            for position, i in enumerate(rows):
                encoded[i] = {key: values[position] for key, values in batch.items()}
    return encoded


def collate(rows: Sequence[Tokens], pad_id: int, device: torch.device | str = "cpu", *,
            left: bool = False, length: int = 0) -> dict[str, Tensor]:  # fmt: skip
    """Pad sequences to the longest one and stack them.

    Args:
        rows: The sequences.
        pad_id: Id that fills ``input_ids``; other keys are filled with 0.
        device: Device of the result.
        left: Pad on the left, as generation requires, instead of on the right.
        length: Tokens to pad to, if the longest sequence has fewer.

    Returns:
        ``attention_mask`` and the keys of the sequences, each (rows, tokens), int64.
    """
    longest = max(length, *(len(row["input_ids"]) for row in rows))

    def padded(values: list[int], fill: int) -> list[int]:
        padding = [fill] * (longest - len(values))
        return padding + values if left else values + padding

    batch = {key: torch.tensor([padded(row[key], pad_id if key == "input_ids" else 0) for row in rows])
             for key in rows[0]}  # fmt: skip
    batch["attention_mask"] = torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows])
    return {key: to_device(value, device) for key, value in batch.items()}


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool hidden states over the tokens that are not padding.

    Args:
        states: Hidden states, (rows, tokens, width).
        mask: Attention mask, (rows, tokens), padded on the right.
        pooling: ``mean`` or ``last`` (the last token).

    Returns:
        One vector per row, (rows, width), fp32.
    """
    if pooling == "last":
        ends = mask.sum(1) - 1
        return states[torch.arange(len(states), device=states.device), ends].float()
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


def end_id_of(tokenizer: Any) -> int:
    """Return the id of the tokenizer's end token.

    Raises:
        InputError: If the tokenizer has no end token.
    """
    end = getattr(tokenizer, "eos_token_id", None)
    if end is None:
        raise InputError("the base's tokenizer has no end token, so generated text would never end", where="base",
                         fix="set eos_token in its tokenizer_config.json")  # fmt: skip
    return int(end)


def pad_id_of(tokenizer: Any) -> int:
    """Return the id of the padding token, or of the end token if there is no padding token, or else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return getattr(tokenizer, name)
    return 0
