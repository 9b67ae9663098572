"""Greedy generation with a KV cache, in batches in which each row uses its own expert.

The loop is transformers' ``generate``, over the bank's body with the rows' experts active. It keeps the order of rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.chat_template import ChatTemplate, Tokens
from ttmoe.conversation import Conversation, single_turn
from ttmoe.encoding import Choice, Completion, Input, collate, encode_prompts, end_id_of, pad_id_of
from ttmoe.errors import InputError

DEFAULT_MAX_NEW_TOKENS = 64  # for experts whose longest answer is unknown


@dataclass(frozen=True)
class GeneratedText:
    """The text of an expert.

    Attributes:
        text: The generated text, without the end token.
        probability: The probability of the generated tokens, the end token included, 0 to 1.
    """

    text: str
    probability: float


@torch.no_grad()
def generate(bank: Bank, tokenizer: Any, prompts: Sequence[str | Conversation], names: Sequence[str] | str,
             max_new_tokens: Sequence[int] | int = DEFAULT_MAX_NEW_TOKENS, *, max_length: int,
             batch_size: int = 32, streamer: Any = None) -> list[GeneratedText]:  # fmt: skip
    """Generate a text for each prompt, greedily.

    A row's result does not depend on the rows that share its batch, except for rounding.

    Args:
        bank: The bank. It is in eval mode during the call.
        tokenizer: The base's tokenizer.
        prompts: The prompts. A conversation is written in the base's chat template, and its text ends with the
            assistant's turn.
        names: The expert of each prompt, or one name for all.
        max_new_tokens: The largest number of tokens of each text, or one number for all.
        max_length: The largest number of tokens of a prompt and its text together. A prompt that leaves fewer than
            ``max_new_tokens`` is truncated on the left, but never to less than half of ``max_length``.
        batch_size: Rows in a batch, at most.
        streamer: Receives the tokens of a single prompt as they are generated: a ``BaseStreamer`` of transformers.

    Returns:
        One text per prompt, in order.

    Raises:
        InputError: If the base is not a causal model, an expert is not loaded or has a classification head, a number of
            tokens is below 1, or the lists differ in length.
    """
    row_names = [names] * len(prompts) if isinstance(names, str) else list(names)
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check_arguments(bank, prompts, row_names, limits)
    if not prompts:
        return []
    prompt_limits = [max(max_length // 2, max_length - limit, 1) for limit in limits]
    tokens, ends, leads = _encode(tokenizer, prompts, prompt_limits)
    lengths = [len(row["input_ids"]) for row in tokens]
    limits = [min(limit, max(1, max_length - length)) for limit, length in zip(limits, lengths, strict=True)]
    texts: dict[int, GeneratedText] = {}
    training = bank.training
    bank.eval()
    try:
        for rows in _batches(lengths, limits, ends, max_length, batch_size):
            inputs = collate([tokens[i] for i in rows], pad_id_of(tokenizer), bank.device, left=True)
            batch = _generate_batch(bank, tokenizer, inputs, [row_names[i] for i in rows], [limits[i] for i in rows],
                                    ends[rows[0]], streamer)  # fmt: skip
            texts.update(zip(rows, batch, strict=True))
    finally:
        bank.train(training)
    return [replace(texts[i], text=texts[i].text.removeprefix(leads[i]).strip()) for i in range(len(prompts))]


def prompt_of(row: Input) -> str:
    """Return the prompt of any input row: its texts and options, or the user's turns, one per line."""
    if isinstance(row, Conversation):
        return row.prompt.text
    if isinstance(row, Completion):
        return row.prompt
    if isinstance(row, Choice):
        return "\n".join((row.text, *row.options))
    return row if isinstance(row, str) else "\n".join(row)


def conversation_of(row: Input) -> Conversation:
    """Return the conversation that an expert for conversations answers: of another input, one message of the user."""
    return row.prompt if isinstance(row, Conversation) else single_turn(prompt_of(row))


def _encode(
    tokenizer: Any, prompts: Sequence[str | Conversation], limits: Sequence[int]
) -> tuple[list[Tokens], list[tuple[int, ...]], list[str]]:
    """Return the tokens of each prompt, the ids that end its text, and what precedes the answer in the text."""
    plain = [(i, prompt) for i, prompt in enumerate(prompts) if isinstance(prompt, str)]
    encoded = encode_prompts(tokenizer, [prompt for _, prompt in plain], [limits[i] for i, _ in plain])
    tokens = {i: row for (i, _), row in zip(plain, encoded, strict=True)}
    end: tuple[int, ...] = (end_id_of(tokenizer),) if plain else ()
    ends, leads = [end] * len(prompts), [""] * len(prompts)
    template = ChatTemplate(tokenizer) if len(plain) < len(prompts) else None
    for i, prompt in enumerate(prompts):
        if template and isinstance(prompt, Conversation):
            tokens[i] = template.encode_prompt(prompt, limits[i])
            ends[i], leads[i] = template.end_ids, template.lead
    return [tokens[i] for i in range(len(prompts))], ends, leads


def _check_arguments(bank: Bank, prompts: Sequence[str | Conversation], names: list[str], limits: list[int]) -> None:
    if not len(names) == len(limits) == len(prompts):
        raise InputError(f"{len(names)} names and {len(limits)} values of max_new_tokens for {len(prompts)} prompts",
                         where="generate", fix="give one for each prompt, or one for all")  # fmt: skip
    if any(limit < 1 for limit in limits):
        raise InputError("max_new_tokens is below 1", where="generate", fix="raise max_new_tokens")
    for name in dict.fromkeys(names):
        if bank.expert(name).head.out_features:
            raise InputError(f"expert {name!r} has a classification head and cannot generate text", where="generate",
                             fix="use `score`")  # fmt: skip


def _batches(lengths: list[int], limits: list[int], ends: list[tuple[int, ...]], max_length: int,
             size: int) -> Iterator[list[int]]:  # fmt: skip
    """Yield batches of row indexes, the shortest prompts first. The rows of a batch end with the same ids.

    The longest prompt and the longest text of a batch together stay within ``max_length``: the base may have no
    positions beyond it.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (ends[row], lengths[row], limits[row])):
        longest = max((limits[i] for i in batch), default=0)
        is_full = len(batch) == size or lengths[row] + max(longest, limits[row]) > max_length
        if batch and (is_full or ends[row] != ends[batch[0]]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _generate_batch(bank: Bank, tokenizer: Any, inputs: dict[str, Tensor], names: list[str], limits: list[int],
                    ends: tuple[int, ...], streamer: Any) -> list[GeneratedText]:  # fmt: skip
    """Generate one batch, padded on the left. Each row ends at one of ``ends`` or after its number of tokens."""
    from transformers import GenerationConfig, LogitsProcessorList

    recorder = _LogProbabilityRecorder()
    settings = GenerationConfig(max_new_tokens=max(limits), do_sample=False, num_beams=1, use_cache=True,
                                eos_token_id=list(ends), pad_token_id=pad_id_of(tokenizer))  # fmt: skip
    with bank.language_head.generation_model() as causal, bank.active(names):
        accepted = inspect.signature(causal.forward).parameters
        arguments = {key: value for key, value in inputs.items() if key in accepted}
        sequences = causal.generate(**arguments, generation_config=settings, streamer=streamer,
                                    logits_processor=LogitsProcessorList([recorder]))  # fmt: skip
    ids = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    log_probabilities = torch.stack(recorder.steps, dim=1).cpu()
    texts = []
    for row, steps, limit in zip(ids, log_probabilities, limits, strict=True):
        length = min(next((i for i, token in enumerate(row, 1) if token in ends), len(row)), limit)
        text = tokenizer.decode(row[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        texts.append(GeneratedText(text.strip(), float(steps[:length].sum().exp())))
    return texts


class _LogProbabilityRecorder:
    """A logits processor that records the log-probability of the likeliest token, (rows,) per step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scores.amax(-1) - scores.logsumexp(-1))
        return scores
