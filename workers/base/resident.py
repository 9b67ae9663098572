"""Keep one frozen base loaded in the process, so that many experts can be trained on it one after another."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ttmoe.bank import Bank
from ttmoe.base import Base, load_tokenizer
from ttmoe.encoding import pad_id_of
from workers.base.base_sources import base_on_this_node
from workers.training.engines.engine import SINGLE_PROCESS, Engine
from workers.training.engines.selection import engine_key, make_engine
from workers.training.memory_limit import return_freed_memory
from workers.training.settings import ONE_PROCESS, TrainSettings


@dataclass(frozen=True)
class ResidentBase:
    """A loaded base.

    Attributes:
        bank: The bank on the base; it contains experts only inside ``in_use``.
        tokenizer: The tokenizer of the base.
        pad_id: Token id for padding.
        engine: How this process trains on it, alone or with others.
        kept_rows: Rows that the process keeps for several trainings, by what they were read from and how.
    """

    bank: Bank
    tokenizer: Any
    pad_id: int
    engine: Engine = SINGLE_PROCESS
    kept_rows: dict[Any, dict[Any, Any]] = field(default_factory=dict)

    @contextmanager
    def in_use(self) -> Iterator[Bank]:
        """Yield the bank to add experts to; on exit remove all experts and return freed memory to the system."""
        try:
            yield self.bank
        finally:
            for name in list(self.bank.experts):
                self.bank.remove(name)
            self.bank.eval()
            _collect()
            return_freed_memory()


_Key = tuple[Any, ...]
_resident: tuple[_Key, ResidentBase] | None = None
_began_loading = False  # since the last release, whatever came of it
_loads = 0
_MANY_OBJECTS = 10_000  # experts leave some hundreds; what the first one imports is three times as many


def load_resident_base(base: Base, device: str, train: TrainSettings = ONE_PROCESS) -> ResidentBase:
    """Return the loaded base, from memory if it was the last one loaded; otherwise release that one first.

    Args:
        base: The base to load.
        device: Device of the weights, such as "cpu" or "cuda".
        train: Settings that name the engine; by default that of one process.
    """
    global _resident, _began_loading, _loads
    # The folder and the maximum length are no part of the key: they do not change the model.
    key = (base.digest, base.dtype, base.pooling, device, base.chat_template, engine_key(train))
    if _resident and _resident[0] == key:
        return _resident[1]
    release_resident_base()
    base = base_on_this_node(base)
    _began_loading = True
    gc.disable()  # an eighth of the time goes to collections, and what is imported and loaded stays
    try:
        tokenizer, engine = load_tokenizer(base), make_engine(train)
        bank = Bank(engine.load_body(base, device), base.pooling).eval()
    finally:
        gc.enable()
    _loads += 1
    _resident = (key, ResidentBase(bank, tokenizer, pad_id_of(tokenizer), engine))
    _collect()
    return _resident[1]


def release_resident_base() -> None:
    """Release the loaded base, if any, and its memory."""
    global _resident, _began_loading
    if not _began_loading:
        return  # a collection visits all that a process has imported, which takes half a second
    _resident, _began_loading = None, False
    gc.unfreeze()
    # Modules and hooks reference each other: without this the old base, or one whose loading failed, stays in memory.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _collect() -> None:
    """Collect garbage, and exclude what remains from later collections if it is so much that it must be modules.

    A collection visits every object: half a second for those of torch, transformers and Ray, for each expert. They live
    as long as the process; those of the base until it is released.
    """
    gc.collect()
    if len(gc.get_objects()) > _MANY_OBJECTS:
        gc.freeze()


def count_base_loads() -> int:
    """Return how many times this process has loaded a base."""
    return _loads
