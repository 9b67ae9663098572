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
_BYTES_PER_TOKEN = 3.2  # English has 4 and more; code, numbers and other languages have fewer
_SPECIAL_TOKENS = 3
_STEP = 16


@dataclass(frozen=True)
class RowLengths:
    """Lengths of a task's rows, by a sample.

    Attributes:
        median: Tokens of the row in the middle.
        most: Tokens that 95% of the rows do not exceed.
        longest: Tokens of the longest row of the sample.
        estimated: Whether they are estimated from the number of bytes.
    """

    median: int
    most: int
    longest: int
    estimated: bool

    @classmethod
    def of(cls, lengths: Sequence[int], *, estimated: bool = False) -> RowLengths:
        """Return the figures of these lengths, of which there is at least one."""
        ordered = sorted(lengths)
        last = len(ordered) - 1
        return cls(ordered[last // 2], ordered[-(-last * 95 // 100)], ordered[-1], estimated)

    def __str__(self) -> str:
        text = f"median {self.median:,}, 95% have at most {self.most:,}, longest {self.longest:,}"
        return f"{text} (estimated)" if self.estimated else text


def fitting_length(lengths: Sequence[RowLengths], most: int) -> int:
    """Return the smallest ``base.max_length`` that cuts at most one of twenty rows of each task.

    Args:
        lengths: Lengths of the tasks.
        most: Positions of the base.
    """
    needed = max(each.most for each in lengths)
    return min(most, -(-needed // _STEP) * _STEP)


def measure_rows(examples: Sequence[Example], tokenizer: Any) -> RowLengths:
    """Return the lengths of rows.

    Args:
        examples: The rows; a sample of them is read.
        tokenizer: From ``find_tokenizer``; None to estimate the lengths.
    """
    sample = examples[:: max(1, len(examples) // COUNTED_ROWS)]
    if tokenizer is None:
        return RowLengths.of([max(map(_estimate, _sequences(each))) for each in sample], estimated=True)
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
    if example.messages:
        return [tuple(message.content for message in example.messages)]
    if example.choices:
        return [(example.texts[0], option) for option in example.choices]
    return [(*example.texts, *filter(None, [example.answer]))]


def _estimate(texts: Sequence[str]) -> int:
    return round(sum(len(text.encode()) / _BYTES_PER_TOKEN + _SPECIAL_TOKENS for text in texts))
