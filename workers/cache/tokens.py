"""Each split tokenised once, and kept under all that decides its tokens."""

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
from workers.data.prepared import PreparedTask, load_split
from workers.recipes import RECIPES
from workers.training.batches import TokenizedRows, tokenize
from workers.training.checksummed_files import CorruptFileError, read_checksummed, write_checksummed

_LOG = logging.getLogger("ttmoe")


def token_path(base: Base, data: PreparedTask, split: str, cache: Path) -> Path:
    """Where the tokens of a split lie: the name says all that decides them."""
    decides = f"{RECIPES['tokens']} {base.digest} {base.max_length} {data.fingerprint}"
    return cache / "tokens" / f"{data.name}-{hashlib.sha256(decides.encode()).hexdigest()[:16]}-{split}"


def load_tokenized_rows(base: Base, tokenizer: Any, data: PreparedTask, split: str, cache: Path) -> TokenizedRows:
    """The split's rows, out of the cache or tokenised into it; a damaged file is made again.

    Processes may do the same at once. A cache that cannot be written costs time, not the work.
    """
    path = token_path(base, data, split, cache)
    try:
        return _unpacked(load(read_checksummed(path)))
    except FileNotFoundError:
        pass
    except (CorruptFileError, OSError) as error:
        _LOG.warning("tokens are made again: %s", error)
    rows = tokenize(tokenizer, load_split(data, split), base.max_length)
    try:
        write_checksummed(path, save(_packed(rows)))
    except OSError as error:
        _LOG.warning("tokens are not kept: %s", error)
    return rows


def _packed(rows: TokenizedRows) -> dict[str, Tensor]:
    """Flat int32: the sequences' ``lengths``, each row's number of ``options`` and ``labels``, and every key's tokens.

    A row's sequences are its whole and then its options. Only where there are any, the lengths of ``answers``.
    """
    sequences = [tokens for item in rows.items for tokens in (item.whole, *item.options)]
    flat = {
        "lengths": [len(tokens["input_ids"]) for tokens in sequences],
        "options": [len(item.options) for item in rows.items],
        "labels": rows.labels,
    }
    if any(item.answer for item in rows.items):
        flat["answers"] = [item.answer for item in rows.items]
    for key in sequences[0] if sequences else ():
        flat[f"tokens.{key}"] = [number for tokens in sequences for number in tokens[key]]
    return {key: torch.tensor(values, dtype=torch.int32) for key, values in flat.items()}


def _unpacked(tensors: dict[str, Tensor]) -> TokenizedRows:
    flat = {key: value.tolist() for key, value in tensors.items()}
    rest = _sequences({key.removeprefix("tokens."): v for key, v in flat.items() if "." in key}, flat["lengths"])
    answers = flat.get("answers", [0] * len(flat["options"]))
    items = [
        Item(next(rest), tuple(islice(rest, count)), answer)
        for count, answer in zip(flat["options"], answers, strict=True)
    ]
    return TokenizedRows(items, flat["labels"])


def _sequences(flat: Tokens, lengths: list[int]) -> Iterator[Tokens]:
    start = 0
    for length in lengths:
        yield {key: values[start : start + length] for key, values in flat.items()}
        start += length
