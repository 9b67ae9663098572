"""The layout of a split's cached trunk states: cache key, shards, and the location of each sequence."""

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

SHARD_BYTES = 256 * 2**20  # maximum bytes of states in a shard; a longer sequence has a shard of its own


class SequenceLocation(NamedTuple):
    """Where the states of a sequence are stored.

    Attributes:
        shard: Index of the shard, from 0.
        row: Index of the sequence in the shard, from 0.
        token: Index of the sequence's first token among all tokens of the shard, from 0.
        length: Count of the sequence's tokens.
    """

    shard: int
    row: int
    token: int
    length: int


@dataclass(frozen=True)
class TrunkLayout:
    """The plan of a cache entry: which sequences it stores, and where.

    Attributes:
        key: Name of the entry: a hash of everything that determines the states.
        depth: Number of layers in the trunk.
        width: Width of a state.
        dtype: Dtype of the states.
        has_pooled: Whether hidden states 0 to ``depth - 1`` are stored too, pooled. True if each row of the split is
            one sequence, as the router reads it; False for multiple choice, where each option is a sequence.
        sequences: Token ids of each sequence.
        shards: Indices into ``sequences`` for each shard; over all shards, the longest sequence comes first.
        locations: Location of each sequence, in the order of ``sequences``.
        index: Content of ``index.json`` in the entry: the fields of the key, the width, the count of sequences and the
            bytes of each file.
    """

    key: str
    depth: int
    width: int
    dtype: torch.dtype
    has_pooled: bool
    sequences: list[Tokens]
    shards: list[list[int]]
    locations: list[SequenceLocation]
    index: dict[str, Any]

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each shard file, by file name in the entry."""
        return self.index["files"]  # type: ignore[no-any-return]


def state_bytes(tokens: int, width: int, dtype: torch.dtype) -> int:
    """Return the bytes of the states of ``tokens`` tokens."""
    return tokens * width * dtype.itemsize


def pooled_bytes(sequences: int, depth: int, width: int) -> int:
    """Return the bytes of hidden states 0 to ``depth - 1``, fp16, pooled in each way of ``POOLINGS``."""
    return sequences * depth * len(POOLINGS) * width * torch.half.itemsize


def trunk_size(base: Base, total_tokens: int, width: int, *, sequences: int = 0, depth: int = 0) -> int:
    """Return the bytes of the shard files of a cache entry.

    Args:
        base: The base.
        total_tokens: Tokens in all sequences.
        width: Width of a state.
        sequences: Number of sequences whose pooled hidden states are stored too; 0 for multiple choice.
        depth: Number of layers in the trunk; used only if ``sequences`` is not 0.
    """
    return state_bytes(total_tokens, width, getattr(torch, base.dtype)) + pooled_bytes(sequences, depth, width)


def make_trunk_layout(
    base: Base, rows: TokenizedRows, *, fingerprint: str, split: str, depth: int, device: str, width: int
) -> TrunkLayout:
    """Return the layout of a split's cache entry. Computes and writes nothing.

    Args:
        base: The base.
        rows: Rows of the split.
        fingerprint: Digest of the task's prepared rows (``PreparedTask.fingerprint``).
        split: ``train``, ``validation`` or ``test``.
        depth: Number of layers in the trunk.
        device: Device type that computes the states, ``cpu`` or ``cuda``; part of the key, as rounding differs.
        width: Width of a state.
    """
    sequences = [tokens for item in rows.items for tokens in item_sequences(item)]
    dtype = getattr(torch, base.dtype)
    has_pooled = not any(item.options for item in rows.items)
    lengths = [len(tokens["input_ids"]) for tokens in sequences]
    shards, locations = _assign_shards(lengths, SHARD_BYTES // (width * dtype.itemsize))
    files = {f"{i}.states": state_bytes(sum(lengths[j] for j in shard), width, dtype) for i, shard in enumerate(shards)}
    if has_pooled:
        files |= {f"{i}.pooled": pooled_bytes(len(shard), depth, width) for i, shard in enumerate(shards)}
    key_fields = {
        "recipe": RECIPES["trunk"], "base": base.digest, "dtype": base.dtype, "max_length": base.max_length,
        "depth": depth, "device": device, "data": fingerprint, "split": split,
        "sequences": "whole" if has_pooled else "options", "shard": SHARD_BYTES, "tokens": _digest(sequences),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(key_fields).encode()).hexdigest()[:32]
    index = {**key_fields, "width": width, "count": len(sequences), "files": files}
    return TrunkLayout(key, depth, width, dtype, has_pooled, sequences, shards, locations, index)


def _digest(sequences: Sequence[Tokens]) -> str:
    """Hash the token ids, so that a part of a split, or a split tokenised differently, has an entry of its own."""
    digest = hashlib.sha256()
    for tokens in sequences:
        for key in sorted(tokens):  # tokens loaded from a file have their keys in any order
            digest.update(f"{key} {len(tokens[key])} ".encode() + array("q", tokens[key]).tobytes())
    return digest.hexdigest()


def _assign_shards(lengths: Sequence[int], max_tokens: int) -> tuple[list[list[int]], list[SequenceLocation]]:
    """Assign sequences, longest first and then by number, to shards of at most ``max_tokens`` tokens."""
    shards: list[list[int]] = []
    locations: dict[int, SequenceLocation] = {}
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not shards or tokens + lengths[i] > max_tokens:
            shards.append([])
            tokens = 0
        locations[i] = SequenceLocation(len(shards) - 1, len(shards[-1]), tokens, lengths[i])
        shards[-1].append(i)
        tokens += lengths[i]
    return shards, [locations[i] for i in range(len(lengths))]
