"""Text out of experts that write: greedy, a batch in which each row goes through its own expert, with a KV cache.

The loop is transformers' own, over the bank's body: its adapters are those of the rows, whose order it keeps.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.encoding import Choice, Completion, Input, collate, encode_prompts, end_id_of, pad_id_of
from ttmoe.errors import InputError

MOST_TOKENS = 64  # of an answer, where nobody knows how long the expert's answers are


@dataclass(frozen=True)
class GeneratedText:
    """What an expert wrote: the ``text`` up to its end, and the ``probability`` of its tokens, the end included."""

    text: str
    probability: float


@torch.no_grad()
def generate(bank: Bank, tokenizer: Any, prompts: Sequence[str], names: Sequence[str] | str,
             most_tokens: Sequence[int] | int = MOST_TOKENS, *, max_length: int,
             batch_size: int = 32) -> list[GeneratedText]:  # fmt: skip
    """What the expert named for each prompt (one name: all prompts) writes, always taking the likeliest token.

    ``most_tokens`` bounds an answer, for all or for each. Prompt and answer share ``max_length`` tokens: a prompt that
    leaves too few loses its beginning, but never more than half of the room. Rows do not depend on their companions,
    but for rounding. Raises InputError for a base or an expert that writes no text, or lists that do not pair.
    """
    each = [names] * len(prompts) if isinstance(names, str) else list(names)
    most = [most_tokens] * len(prompts) if isinstance(most_tokens, int) else list(most_tokens)
    _check(bank, prompts, each, most)
    rooms = [max(max_length // 2, max_length - count, 1) for count in most]
    tokens = encode_prompts(tokenizer, prompts, rooms)
    lengths = [len(row["input_ids"]) for row in tokens]
    most = [min(count, max(1, max_length - length)) for count, length in zip(most, lengths, strict=True)]
    found: dict[int, GeneratedText] = {}
    training = bank.training
    bank.eval()
    try:
        for rows in _batches(lengths, most, max_length, batch_size):
            inputs = collate([tokens[i] for i in rows], pad_id_of(tokenizer), bank.device, left=True)
            written = _continued(bank, tokenizer, inputs, [each[i] for i in rows], [most[i] for i in rows])
            found.update(zip(rows, written, strict=True))
    finally:
        bank.train(training)
    return [found[i] for i in range(len(prompts))]


def prompt_of(row: Input) -> str:
    """Any input as the prompt of an expert that writes: its texts, and options, line after line."""
    if isinstance(row, Completion):
        return row.prompt
    if isinstance(row, Choice):
        return "\n".join((row.text, *row.options))
    return row if isinstance(row, str) else "\n".join(row)


def _check(bank: Bank, prompts: Sequence[str], names: list[str], most: list[int]) -> None:
    if not len(names) == len(most) == len(prompts):
        raise InputError(f"{len(names)} names and {len(most)} lengths for {len(prompts)} prompts", where="generate",
                         fix="give one for each, or one for all")  # fmt: skip
    if any(count < 1 for count in most):
        raise InputError("an answer has one token or more", where="generate", fix="raise most_tokens")
    for name in dict.fromkeys(names):
        if bank.expert(name).head.out_features:
            raise InputError(f"expert {name!r} has a head: it classifies, and writes no text", where="generate",
                             fix="ask it by `score`")  # fmt: skip


def _batches(lengths: list[int], most: list[int], max_length: int, size: int) -> Iterator[list[int]]:
    """Rows, the shortest prompts first. No batch goes on beyond ``max_length``: the base may know no later position."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], most[row])):
        longest = max((most[i] for i in batch), default=0)
        if batch and (len(batch) == size or lengths[row] + max(longest, most[row]) > max_length):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _continued(bank: Bank, tokenizer: Any, inputs: dict[str, Tensor], names: list[str],
               most: list[int]) -> list[GeneratedText]:  # fmt: skip
    """One batch, padded on the left, each row up to its end token or its own number of tokens."""
    from transformers import GenerationConfig, LogitsProcessorList

    end, start, seen = end_id_of(tokenizer), inputs["input_ids"].shape[1], _Seen()
    settings = GenerationConfig(max_new_tokens=max(most), do_sample=False, num_beams=1, use_cache=True,
                                eos_token_id=end, pad_token_id=pad_id_of(tokenizer))  # fmt: skip
    with bank.words.speaking() as causal, bank.active(names):
        known = inspect.signature(causal.forward).parameters
        given = {key: value for key, value in inputs.items() if key in known}
        ids = causal.generate(**given, generation_config=settings, logits_processor=LogitsProcessorList([seen]))
    shares = torch.stack(seen.shares, dim=1).tolist()
    written = []
    for row, logs, count in zip(ids[:, start:].tolist(), shares, most, strict=True):
        length = min(row.index(end) + 1 if end in row else len(row), count)
        text = tokenizer.decode(row[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        written.append(GeneratedText(text.strip(), float(torch.tensor(logs[:length]).sum().exp())))
    return written


class _Seen:
    """Keeps the log-probability of each step's likeliest token: (rows,) for each. Changes nothing."""

    def __init__(self) -> None:
        self.shares: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.shares.append(scores.amax(-1) - scores.logsumexp(-1))
        return scores
