"""What a split's cached trunk holds, decided before anything is computed: which sequences, where, in how many bytes."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ttmoe.base import Base
from ttmoe.encoding import Tokens
from ttmoe.features import POOLINGS
from workers.recipes import RECIPES
from workers.training.batches import TokenizedRows, item_sequences

SHARD = 256 * 2**20  # bytes of states in a shard, at most (or one sequence)


class SequencePlace(NamedTuple):
    """Where a sequence lies: its shard, its row and its first token in there, and its number of tokens."""

    shard: int
    row: int
    token: int
    length: int


@dataclass(frozen=True)
class TrunkLayout:
    """All that decides an entry of the cache.

    ``shards`` lists sequence numbers, longest first; where the sequences are ``wholes``, which the router reads, the
    hidden states below ``depth`` are kept besides, pooled; ``index`` is what the entry's index must say, its ``files``
    with their bytes.
    """

    key: str
    depth: int
    width: int
    dtype: torch.dtype
    wholes: bool
    sequences: list[Tokens]
    shards: list[list[int]]
    places: list[SequencePlace]
    index: dict[str, Any]

    @property
    def files(self) -> dict[str, int]:
        """Bytes by name of file."""
        return self.index["files"]  # type: ignore[no-any-return]


def trunk_bytes(total_tokens: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of the states of so many tokens."""
    return total_tokens * width * dtype.itemsize


def trunk_size(base: Base, total_tokens: int, width: int, *, sequences: int = 0, depth: int = 0) -> int:
    """Bytes on disk of the states of so many tokens.

    For texts and pairs give ``sequences`` and ``depth`` too: of these, the hidden states below are kept, pooled.
    """
    return trunk_bytes(total_tokens, width, getattr(torch, base.dtype)) + pooled_bytes(sequences, depth, width)


def pooled_bytes(sequences: int, depth: int, width: int) -> int:
    """Bytes of the hidden states below ``depth`` of so many sequences, in both poolings, half precision."""
    return sequences * depth * len(POOLINGS) * width * torch.half.itemsize


def make_trunk_layout(
    base: Base, rows: TokenizedRows, *, fingerprint: str, split: str, depth: int, device: str, width: int
) -> TrunkLayout:
    """The layout of a split's states; ``device`` is the type of device that computes them, which decides rounding."""
    sequences = [tokens for item in rows.items for tokens in item_sequences(item)]
    dtype = getattr(torch, base.dtype)
    wholes = not any(item.options for item in rows.items)
    lengths = [len(tokens["input_ids"]) for tokens in sequences]
    shards, places = _divide(lengths, SHARD // (width * dtype.itemsize))
    files = {f"{i}.states": trunk_bytes(sum(lengths[j] for j in shard), width, dtype) for i, shard in enumerate(shards)}
    if wholes:
        files |= {f"{i}.pooled": pooled_bytes(len(shard), depth, width) for i, shard in enumerate(shards)}
    decides = {
        "recipe": RECIPES["trunk"], "base": base.digest, "dtype": base.dtype, "max_length": base.max_length, "depth": depth,
        "device": device, "data": fingerprint, "split": split, "sequences": "whole" if wholes else "options",
        "shard": SHARD, "tokens": _digest(sequences),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
    index = {**decides, "width": width, "count": len(sequences), "files": files}
    return TrunkLayout(key, depth, width, dtype, wholes, sequences, shards, places, index)


def _digest(sequences: Sequence[Tokens]) -> str:
    """Of the token ids themselves: part of a split, or a split tokenised in a new way, has states of its own."""
    digest = hashlib.sha256()
    for tokens in sequences:
        for key in sorted(tokens):  # tokens out of a file come in any order
            digest.update(f"{key} {len(tokens[key])} ".encode() + array("q", tokens[key]).tobytes())
    return digest.hexdigest()


def _divide(lengths: Sequence[int], room: int) -> tuple[list[list[int]], list[SequencePlace]]:
    """Sequences longest first, then by number, in shards of at most ``room`` tokens; and each one's place."""
    shards: list[list[int]] = []
    places: dict[int, SequencePlace] = {}
    filled = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not shards or filled + lengths[i] > room:
            shards.append([])
            filled = 0
        places[i] = SequencePlace(len(shards) - 1, len(shards[-1]), filled, lengths[i])
        shards[-1].append(i)
        filled += lengths[i]
    return shards, [places[i] for i in range(len(lengths))]
