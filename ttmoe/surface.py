"""The surface of a text: hashed character n-grams and a small map from them to experts, without a pass of the base.

Spelling, case, punctuation and the order of a row's fields tell tasks apart that the pooled states of a frozen base
confuse. The n-grams are hashed (Weinberger et al., 2009, arXiv 0902.2206) and embedded as in fastText (Joulin et al.,
2016, arXiv 1607.01759), so no vocabulary is stored, and the size hardly depends on the number of tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttmoe.conversation import Conversation
from ttmoe.encoding import Choice, Completion, Input

BUCKETS = 1 << 15  # hash values; they fit int16
SURFACE_WIDTH = 64  # of a text's vector
ORDERS = 4  # n-grams of one to four characters
CHARACTERS = 1000  # of a text that are read
_SEPARATOR, _START, _END = "\x1f", "\x02", "\x03"
_PRIME, _MIX = np.uint32(0x01000193), np.uint32(0x9E3779B1)
_HASHED_TEXTS = 500  # texts that are hashed at a time


@dataclass(frozen=True)
class Ngrams:
    """The distinct n-grams of texts.

    Attributes:
        ids: Hash of each n-gram, (n-grams,), int16, from 0 to ``BUCKETS`` - 1; those of a text stand together.
        weights: Weight of each n-gram in its text, (n-grams,), fp16: 1 + log(count), scaled to unit length per text.
        offsets: Position of the first n-gram of each text and, at the end, the number of n-grams, (texts + 1,), int64.
    """

    ids: Tensor
    weights: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, texts: Tensor) -> Ngrams:
        """Return the n-grams of these texts, (texts,), in this order."""
        starts = self.offsets[texts]
        counts = self.offsets[texts + 1] - starts
        offsets = F.pad(counts.cumsum(0), (1, 0))
        positions = torch.arange(int(offsets[-1])) + (starts - offsets[:-1]).repeat_interleave(counts)
        return Ngrams(self.ids[positions], self.weights[positions], offsets)

    @classmethod
    def of(cls, texts: Sequence[str]) -> Ngrams:
        """Hash the n-grams of texts."""
        return cls.join(_hash(texts[i : i + _HASHED_TEXTS]) for i in range(0, len(texts), _HASHED_TEXTS))

    @classmethod
    def join(cls, parts: Iterable[Ngrams]) -> Ngrams:
        """Return the n-grams of all parts, in order."""
        parts = list(parts)
        counts = torch.cat([torch.zeros(1, dtype=torch.long), *(part.offsets.diff() for part in parts)])
        ids, weights = torch.zeros(0, dtype=torch.int16), torch.zeros(0, dtype=torch.half)
        return cls(torch.cat([ids, *(part.ids for part in parts)]),
                   torch.cat([weights, *(part.weights for part in parts)]), counts.cumsum(0))  # fmt: skip


def surface_text(row: Input) -> str:
    """Return the text whose n-grams represent a row: its fields and options, separated by a control character."""
    if isinstance(row, Choice):
        return _SEPARATOR.join((row.text, *row.options))
    if isinstance(row, Conversation):
        return row.prompt.text
    if isinstance(row, Completion):
        return row.prompt
    return row if isinstance(row, str) else _SEPARATOR.join(row)


class Surface(nn.Module):
    """A map from n-grams to scores of experts: their embeddings, summed by weight, a rectifier and a linear map.

    Args:
        tasks: Number of tasks.
        width: Width of a text's vector.
    """

    def __init__(self, tasks: int, width: int = SURFACE_WIDTH) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(BUCKETS, width, mode="sum")
        self.output = nn.Linear(width, tasks)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def embed(self, ngrams: Ngrams) -> Tensor:
        """Return the vectors (texts, width) of these texts, fp32."""
        device = self.embedding.weight.device
        ids, offsets = ngrams.ids.to(device).int(), ngrams.offsets[:-1].to(device).int()
        return self.embedding(ids, offsets, per_sample_weights=ngrams.weights.to(device).float()).relu()

    def forward(self, vectors: Tensor) -> Tensor:
        """Return scores (texts, tasks) for vectors (texts, width)."""
        return self.output(vectors)


def _hash(texts: Sequence[str]) -> Ngrams:
    """Hash a few texts at once; all positions of all texts are one array."""
    marked = [f"{_START}{text[:CHARACTERS]}{_END}" for text in texts]
    lengths = np.array([len(text) for text in marked], dtype=np.int64)
    total = int(lengths.sum())
    codes = np.zeros(total + ORDERS, np.uint32)
    codes[:total] = np.frombuffer("".join(marked).encode("utf-32-le", "surrogatepass"), "<u4")
    rows = np.repeat(np.arange(len(texts)), lengths)
    left = np.repeat(lengths.cumsum(), lengths) - np.arange(total)  # characters from here to the text's end
    keys, values = [], np.zeros(total, np.uint32)
    for order in range(1, ORDERS + 1):
        values = (values ^ codes[order - 1 : order - 1 + total]) * _PRIME
        values ^= values >> 15
        whole = left >= order
        mixed = (values[whole] + np.uint32(order)) * _MIX
        keys.append(rows[whole] * BUCKETS + (mixed ^ mixed >> 16) % BUCKETS)
    found, counts = np.unique(np.concatenate(keys), return_counts=True)
    owners, weights = found // BUCKETS, 1 + np.log(counts)
    weights /= np.sqrt(np.bincount(owners, weights**2, minlength=len(texts)))[owners]
    offsets = np.searchsorted(owners, np.arange(len(texts) + 1))
    return Ngrams(torch.from_numpy((found % BUCKETS).astype(np.int16)), torch.from_numpy(weights).half(),
                  torch.from_numpy(offsets))  # fmt: skip
