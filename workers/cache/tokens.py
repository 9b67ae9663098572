"""Cache of tokenised splits."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ttmoe.base import Base
from ttmoe.encoding import Item, Tokens
from ttmoe.template_files import template_digest
from workers.data.prepared import PreparedTask, load_split
from workers.recipes import RECIPES
from workers.training.batches import TokenizedRows, tokenize
from workers.training.checksummed_files import CorruptFileError, read_checksummed, write_checksummed

_LOG = logging.getLogger("ttmoe")


def token_path(base: Base, data: PreparedTask, split: str, cache: Path) -> Path:
    """Return the path of a split's tokens in the cache; its name includes a hash of all that determines them."""
    key = f"{RECIPES['tokens']} {base.digest} {base.max_length} {data.fingerprint}"
    key += f" {template_digest(base.chat_template)}" if data.kind == "chat" else ""
    return cache / "tokens" / f"{data.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}-{split}"


def load_tokenized_rows(base: Base, tokenizer: Any, data: PreparedTask, split: str, cache: Path) -> TokenizedRows:
    """Load a split's tokens from the cache, or tokenise the split and write them to it.

    A damaged file is replaced. If the cache cannot be written, log a warning. Several processes may do this at once.

    Args:
        base: The base.
        tokenizer: Tokenizer of the base.
        data: The task's prepared data.
        split: Name of the split.
        cache: Root folder of the cache.
    """
    path = token_path(base, data, split, cache)
    try:
        return _unpack(load(read_checksummed(path)))
    except FileNotFoundError:
        pass
    except (CorruptFileError, OSError) as error:
        _LOG.warning("Cached tokens could not be read; the split is tokenised again: %s", error)
    rows = tokenize(tokenizer, load_split(data, split), base.max_length)
    try:
        write_checksummed(path, save(_pack(rows)), synchronize=False)  # a damaged file is replaced
    except OSError as error:
        _LOG.warning("Tokens could not be cached: %s", error)
    return rows


def _pack(rows: TokenizedRows) -> dict[str, Tensor]:
    """Convert rows to flat int32 tensors.

    ``lengths`` of the sequences (of each row the whole input, then its options), number of ``options`` and ``labels``
    of the rows, ``tokens.<key>`` of all sequences, and if there are any the lengths of the rows' ``answers``, and
    the number of each row's ``turns`` with the two ``bounds`` of each.
    """
    sequences = [tokens for item in rows.items for tokens in (item.whole, *item.options)]
    flat = {
        "lengths": [len(tokens["input_ids"]) for tokens in sequences],
        "options": [len(item.options) for item in rows.items],
        "labels": rows.labels,
    }
    if any(item.answer_length for item in rows.items):
        flat["answers"] = [item.answer_length for item in rows.items]
    if any(item.turns for item in rows.items):
        flat["turns"] = [len(item.turns) for item in rows.items]
        flat["bounds"] = [bound for item in rows.items for turn in item.turns for bound in turn]
    for key in sequences[0] if sequences else ():
        flat[f"tokens.{key}"] = [number for tokens in sequences for number in tokens[key]]
    return {key: torch.tensor(values, dtype=torch.int32) for key, values in flat.items()}


def _unpack(tensors: dict[str, Tensor]) -> TokenizedRows:
    flat = {key: value.tolist() for key, value in tensors.items()}
    tokens = {key.removeprefix("tokens."): values for key, values in flat.items() if "." in key}
    sequences = _split_sequences(tokens, flat["lengths"])
    answers = flat.get("answers", [0] * len(flat["options"]))
    turns = flat.get("turns", [0] * len(flat["options"]))
    flat_bounds = flat.get("bounds", [])
    bounds = zip(flat_bounds[::2], flat_bounds[1::2], strict=True)
    items = [
        Item(next(sequences), tuple(islice(sequences, count)), answer, tuple(islice(bounds, spans)))
        for count, answer, spans in zip(flat["options"], answers, turns, strict=True)
    ]
    return TokenizedRows(items, flat["labels"])


def _split_sequences(flat: Tokens, lengths: list[int]) -> Iterator[Tokens]:
    start = 0
    for length in lengths:
        yield {key: values[start : start + length] for key, values in flat.items()}
        start += length
