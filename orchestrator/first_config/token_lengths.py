"""Lengths of rows in tokens: by the base's own tokenizer if it is on this machine, else estimated from their bytes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.data.examples import Example

COUNTED_ROWS = 1000
"""Rows of a split whose tokens are counted."""
# Fewer than there are, so that few lengths are estimated too low: English has 4 and more, German and numbers 3.
_BYTES_PER_TOKEN, _OTHER_BYTES_PER_TOKEN = 3.0, 1.3  # of ASCII, and of other letters
_SPECIAL_TOKENS = 3
_TURN_TOKENS, _TEMPLATE_TOKENS = 6, 24  # of a message in a chat template, and of what the template adds once
_PROMPT_TOKENS = 64  # left for the prompt of the longest answer
_STEP = 16


@dataclass(frozen=True)
class RowLengths:
    """Lengths of a task's rows, by a sample.

    Attributes:
        median: Tokens of the row in the middle.
        most: Tokens that 95% of the rows do not exceed.
        longest: Tokens of the longest row of the sample.
        estimated: Whether they are estimated from the number of bytes.
        longest_answer: Tokens of the longest text to generate of all rows, which may not be cut; 0 without one.
    """

    median: int
    most: int
    longest: int
    estimated: bool = False
    longest_answer: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], *, estimated: bool = False, longest_answer: int = 0) -> RowLengths:
        """Return the figures of these lengths, of which there is at least one."""
        ordered = sorted(lengths)
        last = len(ordered) - 1
        return cls(ordered[last // 2], ordered[-(-last * 95 // 100)], ordered[-1], estimated, longest_answer)

    def to_dict(self) -> dict[str, int]:
        """Return the figures as JSON values."""
        return {"median": self.median, "p95": self.most, "longest": self.longest}

    def __str__(self) -> str:
        text = f"median {self.median:,}, 95% have at most {self.most:,}, longest {self.longest:,}"
        return f"{text} (estimated)" if self.estimated else text


def needed_length(lengths: RowLengths) -> int:
    """Return the ``base.max_length`` at which at most one of twenty rows of a task is cut, and no answer."""
    needed = max(lengths.most, lengths.longest_answer and lengths.longest_answer + _PROMPT_TOKENS)
    return -(-needed // _STEP) * _STEP


def measure_rows(examples: Sequence[Example], tokenizer: Any) -> RowLengths:
    """Return the lengths of rows.

    Args:
        examples: The rows; a sample of them is read.
        tokenizer: From ``find_tokenizer``; None to estimate the lengths.
    """
    sample = examples[:: max(1, len(examples) // COUNTED_ROWS)]
    if tokenizer is None:
        answer = max(map(_longest_answer, examples))
        return RowLengths.of([_estimate_row(each) for each in sample], estimated=True, longest_answer=answer)
    rows = [(i, sequence) for i, each in enumerate(sample) for sequence in _sequences(each)]
    lengths = [0] * len(sample)
    encoded = tokenizer.encode_batch([texts if len(texts) > 1 else texts[0] for _, texts in rows])
    for (i, _), tokens in zip(rows, encoded, strict=True):
        lengths[i] = max(lengths[i], len(tokens.ids))
    return RowLengths.of(lengths)


def find_tokenizer(package: str, path: str) -> Any:
    """Return the tokenizer of a base in an installed package, without torch; None if it is not there.

    Args:
        package: ``name==version``.
        path: The model's folder in the package.
    """
    name, _, version = package.partition("==")
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    file = Path(str(found.locate_file(path)), "tokenizer.json")
    if found.version != version or not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _sequences(example: Example) -> list[tuple[str, ...]]:
    """Return the texts or pairs of texts that a model reads of a row."""
    if example.choices:
        return [(example.texts[0], option) for option in example.choices]
    return [(*example.texts, *filter(None, [example.answer]))]


def _estimate_row(example: Example) -> int:
    if example.messages:
        turns = [_estimate(message.content) + _TURN_TOKENS for message in example.messages]
        return round(sum(turns) + _TEMPLATE_TOKENS)
    return max(round(sum(_estimate(text) + _SPECIAL_TOKENS for text in texts)) for texts in _sequences(example))


def _longest_answer(example: Example) -> int:
    """Return the tokens of the longest answer of a row; 0 without one."""
    answers = [message.content for message in example.messages if message.role == "assistant"] or [example.answer]
    return round(max(map(_estimate, answers)))


def _estimate(text: str) -> float:
    plain = len(text) if text.isascii() else sum(map(str.isascii, text))
    return plain / _BYTES_PER_TOKEN + (len(text.encode()) - plain) / _OTHER_BYTES_PER_TOKEN
