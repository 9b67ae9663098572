"""The trunk's states of a split, computed once and kept on disk, for every expert, trial and router that reads them.

A row's states at depth k depend on the frozen base alone: on no expert and no seed. They are kept in the base's dtype,
real tokens only, in raw shards that are mapped into memory. The tier in memory is the operating system's page cache,
which all jobs of a node share and which gives way to what needs the memory; the tier on disk is the cache's folder
``trunk``, which the budget bounds (least recently used out first, never what is in use).
"""

from __future__ import annotations

import logging
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.base import Base
from ttmoe.encoding import collate
from ttmoe.features import POOLINGS, pool_states
from workers.cache.trunk_folder import FULL, exclusive_lock, hold_entry, lock_of, publish, reserve_space, scratch_of
from workers.cache.trunk_layout import TrunkLayout, make_trunk_layout
from workers.progress import Progress
from workers.training.batches import TokenizedRows

# Padded tokens that go through the base at once: on a CPU, 16,384 of them took MiniLM three times as long as 2,048.
CPU_TOKENS, GPU_TOKENS = 2048, 16384

log = logging.getLogger("ttmoe")


class TrunkStates:
    """The states at ``depth`` of a split's sequences, numbered over its rows in order, each row's options in order.

    Where these are ``wholes``, not the options of choices, the hidden states below are kept as well, pooled.
    While this object lives, the entry on disk is not evicted.
    """

    def __init__(self, folder: Path, layout: TrunkLayout, number: int) -> None:
        weakref.finalize(self, os.close, number)
        self.depth, self.wholes, self._layout = layout.depth, layout.wholes, layout
        self._maps = {}
        for name, size in layout.files.items():
            dtype = layout.dtype if name.endswith(".states") else torch.half
            flat = torch.from_file(str(folder / name), shared=False, size=size // dtype.itemsize, dtype=dtype)
            self._maps[name] = flat.view(-1, layout.width)

    def gather(self, sequences: Sequence[int], device: torch.device | str) -> Tensor:
        """States (sequences, longest, width) in the base's dtype, zeros to the right of the shorter ones."""
        places = [self._layout.places[i] for i in sequences]
        out = torch.zeros(len(places), max(place.length for place in places), self._layout.width,
                          dtype=self._layout.dtype, pin_memory=torch.device(device).type == "cuda")  # fmt: skip
        for i, (shard, _, token, length) in enumerate(places):
            out[i, :length] = self._maps[f"{shard}.states"][token : token + length]
        return out.to(device, non_blocking=True)

    def pooled(self, sequences: Sequence[int], device: torch.device | str) -> Tensor:
        """Hidden states 0 to ``depth - 1`` as ``pool_states`` gives them, fp32: (sequences, depth, poolings, width)."""
        size = self.depth * len(POOLINGS)
        rows = [(place.shard, place.row * size) for place in (self._layout.places[i] for i in sequences)]
        found = torch.stack([self._maps[f"{shard}.pooled"][row : row + size] for shard, row in rows])
        return found.view(len(found), self.depth, len(POOLINGS), -1).to(device).float()


def load_or_compute_trunk(bank: Bank, rows: TokenizedRows, *, base: Base, fingerprint: str, split: str, depth: int, pad_id: int,
               cache: Path, budget: int, report: Callable[[Progress], None]) -> TrunkStates | None:  # fmt: skip
    """The states at ``depth`` of every sequence of a split, from ``cache`` or computed now.

    Processes that want the same states at once compute them once: the others wait, and report meanwhile. None where
    there are none to be had: at depth 0, where they are a lookup; where ``budget`` bytes for all that is cached do not
    hold them; and, with a warning, where the disk is full. Call it outside of ``bank.active``.
    """
    layout = make_trunk_layout(base, rows, fingerprint=fingerprint, split=split, depth=depth, device=bank.device.type,
                     width=bank.width)  # fmt: skip
    if not depth or sum(layout.files.values()) > budget:
        return None
    entry = cache / "trunk" / layout.key
    try:
        return _held(entry, layout) or _make(entry, layout, bank, pad_id, budget, report)
    except OSError as error:
        if error.errno not in FULL:
            raise
        log.warning("%s split: no room for the trunk's states; each step computes them anew: %s", split, error)
        return None


def find_trunk_states(rows: TokenizedRows, *, base: Base, fingerprint: str, split: str, depth: int, device: str, width: int,
               cache: Path) -> TrunkStates | None:  # fmt: skip
    """The same states if they are there; ``device`` is the type of device they were computed on, such as ``cpu``."""
    if not depth or not (cache / "trunk").is_dir():
        return None
    layout = make_trunk_layout(
        base, rows, fingerprint=fingerprint, split=split, depth=depth, device=device, width=width
    )
    return _held(cache / "trunk" / layout.key, layout)


def _held(entry: Path, layout: TrunkLayout) -> TrunkStates | None:
    number = hold_entry(entry, layout.index)
    return None if number is None else TrunkStates(entry, layout, number)


def _make(entry: Path, layout: TrunkLayout, bank: Bank, pad_id: int, budget: int,
          report: Callable[[Progress], None]) -> TrunkStates | None:  # fmt: skip
    with exclusive_lock(lock_of(entry), waiting=lambda: report(Progress("trunk", 0, len(layout.sequences)))):
        if found := _held(entry, layout):  # another process was first
            return found
        try:
            if not reserve_space(entry, layout.files, budget):
                return None
            _compute(bank, layout, pad_id, scratch_of(entry), report)
            return TrunkStates(entry, layout, publish(entry, layout.index))
        except BaseException:
            shutil.rmtree(scratch_of(entry), ignore_errors=True)
            raise


def _compute(bank: Bank, layout: TrunkLayout, pad_id: int, scratch: Path, report: Callable[[Progress], None]) -> None:
    """Fill the files that were set aside, batch after batch, and bring them to the disk.

    A power cut after the entry has its name must not leave zeros in files of the right sizes.
    """
    done, tokens = 0, CPU_TOKENS if bank.device.type == "cpu" else GPU_TOKENS
    for i, shard in enumerate(layout.shards):
        with ExitStack() as stack:
            kinds = ("states", "pooled") if layout.wholes else ("states",)
            files = {kind: stack.enter_context((scratch / f"{i}.{kind}").open("r+b")) for kind in kinds}
            for batch in _batches(layout, shard, tokens):
                for kind, values in _states(bank, layout, batch, pad_id).items():
                    files[kind].write(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
                done += len(batch)
                report(Progress("trunk", done, len(layout.sequences)))
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())


def _batches(layout: TrunkLayout, shard: list[int], tokens: int) -> Iterator[list[int]]:
    """A shard's sequences in order, in batches of at most so many padded tokens: the first of each is its longest."""
    start = 0
    while start < len(shard):
        size = max(1, tokens // layout.places[shard[start]].length)
        yield shard[start : start + size]
        start += size


def _states(bank: Bank, layout: TrunkLayout, batch: list[int], pad_id: int) -> dict[str, Tensor]:
    """By kind of file: ``states`` (real tokens of all sequences, width) and ``pooled`` (sequences, depth, poolings,
    width).
    """
    inputs = collate([layout.sequences[i] for i in batch], pad_id, bank.device)
    *below, states = bank.trunk(layout.depth).hidden_states(inputs)
    found = {"states": states[inputs["attention_mask"].bool()].to(layout.dtype)}
    if layout.wholes:
        found["pooled"] = pool_states(below, inputs["attention_mask"]).half()
    return found
