"""Cache of the trunk's states of a split, computed once for every expert, trial and router.

The states of a row at a depth depend only on the frozen base, not on an expert or a seed. The real tokens' states are
stored in the base's dtype in raw files, which are mapped into memory. The operating system's page cache keeps them in
memory: all jobs of a node share it, and it shrinks when memory is needed. On disk they are in the cache's folder
``trunk``, with a limited size; the least recently used entries are evicted, except those in use.
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
from ttmoe.features import POOLINGS, pool_state
from workers.cache.trunk_folder import (
    UNUSABLE_ERRNOS,
    creation_lock,
    exclusive_lock,
    open_entry,
    publish_entry,
    reserve_space,
    scratch_folder,
)
from workers.cache.trunk_layout import TrunkLayout, make_trunk_layout
from workers.progress import Progress
from workers.training.batches import TokenizedRows

# Padded tokens in a batch. On a CPU, MiniLM took three times as long with 16,384 as with 2,048.
CPU_TOKENS, GPU_TOKENS = 2048, 16384

_LOG = logging.getLogger("ttmoe")


class TrunkStates:
    """Stored trunk states of a split. The entry on disk is not evicted while this object exists.

    Sequences are numbered over the split: row by row, and within a row option by option.

    Attributes:
        depth: Number of layers in the trunk.
        has_pooled: Whether the pooled hidden states below ``depth`` are stored too.
    """

    def __init__(self, entry: Path, layout: TrunkLayout, descriptor: int) -> None:
        """Map the files of an entry into memory.

        Args:
            entry: Folder of the entry.
            layout: Layout of the entry.
            descriptor: Descriptor that protects the entry; closed together with this object.
        """
        weakref.finalize(self, os.close, descriptor)
        self.depth, self.has_pooled, self._layout = layout.depth, layout.has_pooled, layout
        self._maps = {}
        for name, size in layout.files.items():
            dtype = layout.dtype if name.endswith(".states") else torch.half
            flat = torch.from_file(str(entry / name), shared=False, size=size // dtype.itemsize, dtype=dtype)
            self._maps[name] = flat.view(-1, layout.width)

    def gather(self, sequences: Sequence[int], device: torch.device | str) -> Tensor:
        """Return states (sequences, longest sequence, width) in the base's dtype, zero-padded on the right."""
        locations = [self._layout.locations[i] for i in sequences]
        out = torch.zeros(len(locations), max(location.length for location in locations), self._layout.width,
                          dtype=self._layout.dtype, pin_memory=torch.device(device).type == "cuda")  # fmt: skip
        for i, (shard, _, token, length) in enumerate(locations):
            out[i, :length] = self._maps[f"{shard}.states"][token : token + length]
        return out.to(device, non_blocking=True)

    def gather_pooled(self, sequences: Sequence[int], device: torch.device | str) -> Tensor:
        """Return pooled hidden states 0 to ``depth - 1``: (sequences, depth, poolings, width), fp32, at unit length."""
        size = self.depth * len(POOLINGS)
        locations = [self._layout.locations[i] for i in sequences]
        states = torch.stack([self._maps[f"{location.shard}.pooled"][location.row * size :][:size]
                              for location in locations])  # fmt: skip
        return states.view(len(states), self.depth, len(POOLINGS), -1).to(device).float()


def load_or_compute_trunk(
    bank: Bank,
    rows: TokenizedRows,
    *,
    base: Base,
    fingerprint: str,
    split: str,
    depth: int,
    pad_id: int,
    cache: Path,
    budget: int,
    report: Callable[[Progress], None],
) -> TrunkStates | None:
    """Load the trunk states of a split from the cache, or compute and cache them.

    If several processes need the same states at once, one computes them; the others wait and report progress. Must not
    be called within ``bank.active``.

    Args:
        bank: Bank that holds the base.
        rows: Rows of the split.
        base: The base.
        fingerprint: Fingerprint of the task's data.
        split: Name of the split.
        depth: Number of layers in the trunk.
        pad_id: Token id used for padding.
        cache: Root folder of the cache.
        budget: Bytes that all cached trunk states may take.
        report: Receives the progress.

    Returns:
        None if nothing is cached: ``depth`` is 0, the budget is too small, or the folder cannot be used (logs a
        warning): the disk is full, the file system offers no locks, or the folder is another user's.
    """
    layout = make_trunk_layout(
        base, rows, fingerprint=fingerprint, split=split, depth=depth, device=bank.device.type, width=bank.width
    )
    if not depth or sum(layout.files.values()) > budget:
        return None
    entry = cache / "trunk" / layout.key
    try:
        return _open(entry, layout) or _create(entry, layout, bank, pad_id, budget, report)
    except OSError as error:
        if error.errno not in UNUSABLE_ERRNOS:
            raise
        _LOG.warning("The trunk states of the %s split cannot be cached; they are recomputed in every step: %s",
                     split, error)  # fmt: skip
        return None


def find_trunk_states(
    rows: TokenizedRows, *, base: Base, fingerprint: str, split: str, depth: int, device: str, width: int, cache: Path
) -> TrunkStates | None:
    """Load the trunk states of a split from the cache.

    Args:
        rows: Rows of the split.
        base: The base.
        fingerprint: Fingerprint of the task's data.
        split: Name of the split.
        depth: Number of layers in the trunk.
        device: Type of the device that computed the states, such as ``cpu``.
        width: Width of a state.
        cache: Root folder of the cache.

    Returns:
        None if they are not in the cache.
    """
    if not depth or not (cache / "trunk").is_dir():
        return None
    layout = make_trunk_layout(
        base, rows, fingerprint=fingerprint, split=split, depth=depth, device=device, width=width
    )
    return _open(cache / "trunk" / layout.key, layout)


def _open(entry: Path, layout: TrunkLayout) -> TrunkStates | None:
    descriptor = open_entry(entry, layout.index)
    return None if descriptor is None else TrunkStates(entry, layout, descriptor)


def _create(entry: Path, layout: TrunkLayout, bank: Bank, pad_id: int, budget: int,
            report: Callable[[Progress], None]) -> TrunkStates | None:  # fmt: skip
    with exclusive_lock(creation_lock(entry), waiting=lambda: report(Progress("trunk", 0, len(layout.sequences)))):
        if states := _open(entry, layout):  # another process has created it meanwhile
            return states
        try:
            if not reserve_space(entry, layout.files, budget):
                return None
            _compute(bank, layout, pad_id, scratch_folder(entry), report)
            return TrunkStates(entry, layout, publish_entry(entry, layout.index))
        except BaseException:
            shutil.rmtree(scratch_folder(entry), ignore_errors=True)
            raise


def _compute(bank: Bank, layout: TrunkLayout, pad_id: int, scratch: Path, report: Callable[[Progress], None]) -> None:
    """Compute the states and write them to the allocated files.

    The files are synchronised: a power failure after the entry is published must not leave zeros in them.
    """
    done, max_tokens = 0, CPU_TOKENS if bank.device.type == "cpu" else GPU_TOKENS
    for i, shard in enumerate(layout.shards):
        with ExitStack() as stack:
            kinds = ("states", "pooled") if layout.has_pooled else ("states",)
            files = {kind: stack.enter_context((scratch / f"{i}.{kind}").open("r+b")) for kind in kinds}
            for batch in _batches(layout, shard, max_tokens):
                for kind, values in _compute_batch(bank, layout, batch, pad_id).items():
                    files[kind].write(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
                done += len(batch)
                report(Progress("trunk", done, len(layout.sequences)))
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())


def _batches(layout: TrunkLayout, shard: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield the sequences of a shard, longest first, in batches of at most ``max_tokens`` padded tokens."""
    start = 0
    while start < len(shard):
        size = max(1, max_tokens // layout.locations[shard[start]].length)
        yield shard[start : start + size]
        start += size


def _compute_batch(bank: Bank, layout: TrunkLayout, batch: list[int], pad_id: int) -> dict[str, Tensor]:
    """Return ``states`` (real tokens of all sequences, width) and ``pooled`` (sequences, depth, poolings, width)."""
    inputs = collate([layout.sequences[i] for i in batch], pad_id, bank.device)
    mask = inputs["attention_mask"]

    def use(index: int, states: Tensor) -> Tensor | None:
        if index == layout.depth:
            return states[mask.bool()].to(layout.dtype)
        return pool_state(states, mask).half() if layout.has_pooled else None

    *below, states = bank.trunk(layout.depth).hidden_states(inputs, use)
    return {"states": states} | ({"pooled": torch.stack(below, dim=1)} if layout.has_pooled else {})
