"""The bench: one frozen base stays in the process, and expert after expert is trained on it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ttmoe.bank import Bank
from ttmoe.base import Base, load_body, load_tokenizer
from ttmoe.encoding import pad_id_of
from workers.training.memory_limit import return_freed_memory


@dataclass(frozen=True)
class ResidentBase:
    """A base that is loaded, in a bank without experts, and its tokenizer."""

    bank: Bank
    tokenizer: Any
    pad_id: int

    @contextmanager
    def in_use(self) -> Iterator[Bank]:
        """The bank, to put experts in; whatever happens, they are gone afterwards."""
        try:
            yield self.bank
        finally:
            for name in list(self.bank.experts):
                self.bank.remove(name)
            self.bank.eval()
            _give_back()


def _give_back() -> None:
    """Return freed memory to the system."""
    gc.collect()
    return_freed_memory()


Key = tuple[str, str, str, str]

_held: tuple[Key, ResidentBase] | None = None
_loads = 0


def load_resident_base(base: Base, device: str) -> ResidentBase:
    """The bench of this base; the process keeps the last one, and lets it go before it loads another."""
    global _held, _loads
    # Not where it lies, nor how long its rows may be: those are the same model.
    key = (base.digest, base.dtype, base.pooling, device)
    if _held and _held[0] == key:
        return _held[1]
    release_resident_base()
    tokenizer, bank = load_tokenizer(base), Bank(load_body(base, device), base.pooling).eval()
    _loads += 1
    _held = (key, ResidentBase(bank, tokenizer, pad_id_of(tokenizer)))
    return _held[1]


def release_resident_base() -> None:
    """Let go of the base that is held."""
    global _held
    _held = None
    gc.collect()  # modules and hooks refer to one another: without this the old base stays beside the new one
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def count_base_loads() -> int:
    """How many times this process has loaded a base."""
    return _loads
