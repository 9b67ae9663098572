"""Cache of router features: hidden states of the frozen base, pooled, for the rows of each task.

The features are stored at unit length in fp16, under the base's digest and the data's fingerprint. All layers and both
poolings are stored, so that every router reads the same files; of large bases only those that one router reads, in a
folder of their own. If more rows are requested later, only the missing ones
are computed. A file carries the digest of its features; a damaged one is removed by who reads it, and computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.base import Base
from ttmoe.batching import BATCH_ROWS, batch_tokens, split_by_tokens
from ttmoe.encoding import collate
from ttmoe.features import ALL_STATES, POOLINGS, FeatureSpec, pool_state
from ttmoe.trunk import use_hidden_states
from workers.base.resident import ResidentBase, load_resident_base
from workers.cache.tokens import load_tokenized_rows
from workers.cache.trunk_states import TrunkStates, find_trunk_states
from workers.data.damaged_files import remove_damaged
from workers.data.examples import Example
from workers.data.prepared import PreparedTask, load_split
from workers.data.text_forms import strip_case_and_punctuation, strip_formatting
from workers.progress import Progress, ProgressCallback
from workers.recipes import RECIPES
from workers.training.batches import TokenizedRows, tokenize
from workers.training.checksummed_files import CorruptFileError
from workers.training.engines.engine import share
from workers.training.engines.selection import make_engine
from workers.training.settings import ONE_PROCESS, TrainSettings

PLAIN, STRIPPED, LOOSE = "plain", "stripped", "loose"
# Reformatted splits: the split that they are made from, and how a row is reformatted.
TEXT_FORMS = {
    PLAIN: ("train", strip_formatting),
    STRIPPED: ("test", strip_formatting),
    LOOSE: ("validation", strip_case_and_punctuation),
}
SPLITS = ("train", "validation", *TEXT_FORMS)  # of the test split only a form: the routed model's test reads the base
FORM_ROWS = 500  # maximum rows of a reformatted split
STALE_SECONDS = 24 * 3600  # age from which a temporary file is considered abandoned
_STATES, _DIGEST = "states", "sha256"
_LAYERS, _POOLING = "layers", "pooling"  # metadata of a file that has not all of them
_DIGEST_ROWS = 256  # rows in memory while a digest is computed

_LOG = logging.getLogger("ttmoe")


def feature_folder(base: Base, data: PreparedTask, cache: Path, stored: FeatureSpec = ALL_STATES) -> Path:
    """Return the feature folder of a task; its name includes a hash of all that determines the features."""
    key = f"{RECIPES['features']} {base.digest} {base.dtype} {base.max_length} {data.fingerprint}"
    key += "" if stored == ALL_STATES else f" {stored.layers} {stored.pooling}"
    return cache / "features" / f"{data.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def row_counts(data: PreparedTask, rows: int) -> dict[str, int]:
    """Return the number of rows of each split and form; ``rows`` is the maximum for the training split."""
    counts = {split: sum(labels.values()) for split, labels in data.counts.items()}
    counts["train"] = min(rows, counts["train"])
    return counts | {form: min(FORM_ROWS, counts[split]) for form, (split, _) in TEXT_FORMS.items()}


def load_form(data: PreparedTask, split: str, count: int) -> list[Example]:
    """Load the first ``count`` rows of a split or of a reformatted split."""
    source, reformat = TEXT_FORMS.get(split, (split, None))
    examples = load_split(data, source)[:count]
    return [reformat(example) for example in examples] if reformat else examples


def features_complete(folder: Path, data: PreparedTask, rows: int) -> bool:
    """Return whether the folder contains everything that ``compute_features`` would compute. No features are read."""
    counts = row_counts(data, rows)
    return all(_find_file(folder, split, counts[split]) for split in SPLITS)


def compute_features(
    base: Base,
    data: PreparedTask,
    rows: int,
    cache: Path,
    *,
    threads: int,
    device: str,
    report: ProgressCallback,
    depth: int = 0,
    batch_rows: int = BATCH_ROWS,
    splits: Sequence[str] = SPLITS,
    stored: FeatureSpec = ALL_STATES,
    train: TrainSettings = ONE_PROCESS,
) -> Path:
    """Compute and cache the missing features of a task. Several processes share the batches; process 0 writes.

    A batch has as many tokens as one of an evaluation in training, and at most ``batch_rows`` rows.

    Args:
        base: The base.
        data: The task's prepared data.
        rows: Maximum rows of the training split.
        cache: Root folder of the cache.
        threads: Number of CPU threads.
        device: Device of the base.
        report: Receives the progress.
        depth: Number of layers in the trunk. If trunk states of this depth are cached, the base starts from them; they
            are not computed for this.
        batch_rows: Maximum rows in a batch.
        splits: The splits, and the reformatted splits, whose features are computed.
        stored: The hidden states and poolings that are kept.
        train: Training settings that name the engine; by default that of one process.

    Returns:
        The task's feature folder.
    """
    folder, counts = feature_folder(base, data, cache, stored), row_counts(data, rows)
    engine = make_engine(train)
    missing = engine.from_first(
        lambda: {split: counts[split] for split in splits if not _find_file(folder, split, counts[split])}
    )
    if not missing:
        return folder
    torch.set_num_threads(threads)
    done, total = 0, sum(missing.values())
    report(Progress("loading", 0, total))
    resident = load_resident_base(base, device, train)
    bank = resident.bank
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in missing.items():
        tokenized = _load_rows(base, resident, data, split, cache)
        states = None
        if not engine.shards_base:
            states = find_trunk_states(tokenized, base=base, fingerprint=data.fingerprint, split=split, depth=depth,
                                       device=bank.device.type, width=bank.width, cache=cache)  # fmt: skip
        cached = _load_largest(folder, split) if engine.rank == 0 else None
        start = engine.from_first(lambda cached=cached: len(cached) if cached is not None else 0)  # type: ignore[misc]
        done += start
        indexes = stored.indexes(len(bank.trunk(0).layers))
        features = torch.empty(count, len(indexes), len(stored.poolings), bank.width, dtype=torch.half)
        if cached is not None:
            features[:start] = cached
            del cached
        batches = list(_batches(tokenized, range(start, count), batch_tokens(bank.device.type), batch_rows))
        for numbers, counted in share(engine, batches):
            inputs = collate([tokenized.items[i].whole for i in numbers], resident.pad_id, bank.device)
            pooled = _pooled_states(bank, inputs, numbers, states, indexes, stored.poolings).half().cpu()
            for theirs, their_features in engine.gather((numbers if counted else [], pooled)):
                if theirs:
                    features[theirs] = their_features
                    done += len(theirs)
            report(Progress("features", done, total))
        if engine.rank == 0:
            write_features(folder, split, features, stored)
    return folder


def load_features(folder: Path, split: str, count: int, spec: FeatureSpec) -> Tensor:
    """Load the features of a split's first rows that a router reads.

    Args:
        folder: The task's feature folder.
        split: Name of the split.
        count: Number of rows.
        spec: Layers and poolings that the router reads.

    Returns:
        Features (count, layers x poolings x width), fp16.

    Raises:
        FileNotFoundError: If fewer rows are cached.
        CorruptFileError: If the file is damaged. It is removed, so that ``compute_features`` computes it again.
    """
    path = _find_file(folder, split, count)
    if path is None:
        raise FileNotFoundError(f"{folder} does not contain {count} rows of the split {split}")
    try:
        opened = safe_open(path, "pt")
    except FileNotFoundError:  # another process has replaced it by a file with more rows
        return load_features(folder, split, count, spec)
    with opened as file:
        states = file.get_slice(_STATES)
        _require_digest(path, file, states)
        places, poolings = _places(spec, file.metadata(), states.get_shape()[1])
        first, lowest, highest = poolings.index(spec.poolings[0]), min(places), max(places)
        part = states[:count, lowest : highest + 1, first : first + len(spec.poolings)]
    if places != list(range(lowest, highest + 1)):  # otherwise this would be a second copy
        part = part[:, [place - lowest for place in places]]
    return part.flatten(1)


def _places(spec: FeatureSpec, metadata: dict[str, str], count: int) -> tuple[list[int], tuple[str, ...]]:
    """Return the places of a router's hidden states among those of a file, and the poolings of the file."""
    if _LAYERS not in metadata:
        return list(spec.indexes(count - 1)), POOLINGS
    layers = json.loads(metadata[_LAYERS])
    wanted = layers if isinstance(spec.layers, str) else spec.layers
    return [layers.index(layer) for layer in wanted], FeatureSpec(pooling=metadata[_POOLING]).poolings


def write_features(folder: Path, split: str, states: Tensor, stored: FeatureSpec = ALL_STATES) -> None:
    """Write the features of a split's first rows atomically; remove files with fewer rows, and abandoned ones.

    Args:
        folder: The task's feature folder.
        split: Name of the split.
        states: Pooled hidden states (rows, layers, poolings, width), fp16.
        stored: Which hidden states and poolings these are.
    """
    about = {} if stored == ALL_STATES else {_LAYERS: json.dumps(stored.layers), _POOLING: stored.pooling}
    path = folder / f"{split}-{len(states)}.safetensors"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        save_file({_STATES: states.contiguous()}, temporary, {_DIGEST: _digest(states, len(states)), **about})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for other in folder.glob(f"{split}-*.safetensors"):
        if _row_count(other) < len(states):
            other.unlink(missing_ok=True)
    for leftover in folder.glob(".*.safetensors.*"):
        with suppress(FileNotFoundError):  # another process may remove it too
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()


def _load_rows(base: Base, resident: ResidentBase, data: PreparedTask, split: str, cache: Path) -> TokenizedRows:
    if split not in TEXT_FORMS:
        return load_tokenized_rows(base, resident.tokenizer, data, split, cache)
    return tokenize(resident.tokenizer, load_form(data, split, FORM_ROWS), base.max_length)


def _batches(rows: TokenizedRows, numbers: Sequence[int], tokens: int, most: int) -> Iterator[list[int]]:
    """Split these rows into batches of at most so many padded ``tokens`` and ``most`` rows, the longest row first."""
    lengths = [len(item.whole["input_ids"]) for item in rows.items]
    order = sorted(numbers, key=lambda row: -lengths[row])
    return split_by_tokens(order, lengths, [1] * len(lengths), tokens, most)


def _pooled_states(bank: Bank, inputs: dict[str, Tensor], rows: Sequence[int], states: TrunkStates | None,
                   indexes: Sequence[int], poolings: Sequence[str]) -> Tensor:  # fmt: skip
    """Return these pooled hidden states (rows, layers, poolings, width), from cached trunk states if possible."""
    pooled: dict[int, Tensor] = {}

    def use(index: int, layer: Tensor) -> None:
        if index in indexes:
            pooled[index] = pool_state(layer, inputs["attention_mask"], poolings)

    if not states or not states.has_pooled:  # nothing is cached, or only the options of a choice
        use_hidden_states(bank.model, inputs, use)
    else:
        below = states.gather_pooled(rows, bank.device)[:, :, [POOLINGS.index(pooling) for pooling in poolings]]
        pooled |= {index: below[:, index] for index in indexes if index < states.depth}
        bank.trunk(states.depth).hidden_states_above(states.gather(rows, bank.device), inputs, use)
    return torch.stack([pooled[index] for index in indexes], dim=1)


def _find_file(folder: Path, split: str, count: int) -> Path | None:
    """Return the smallest sealed file with at least ``count`` rows of the split."""
    files = (path for path in folder.glob(f"{split}-*.safetensors") if _row_count(path) >= count and _is_sealed(path))
    return min(files, key=_row_count, default=None)


def _is_sealed(path: Path) -> bool:
    """Return whether a file has its full size and a digest, according to its header."""
    try:
        with safe_open(path, "pt") as file:
            return _DIGEST in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _row_count(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _load_largest(folder: Path, split: str) -> Tensor | None:
    """Return the features of the largest sealed file of the split; None if there is none, or if it is damaged."""
    path = max(filter(_is_sealed, folder.glob(f"{split}-*.safetensors")), key=_row_count, default=None)
    if path is None:
        return None
    with safe_open(path, "pt") as file:
        states = file.get_tensor(_STATES)
        try:
            _require_digest(path, file, states)
        except CorruptFileError as error:
            _LOG.warning("Cached features are computed again: %s", error)
            return None
    return states


def _require_digest(path: Path, file: Any, states: Any) -> None:
    """Remove the file and raise CorruptFileError if its ``states``, a tensor or a slice, do not match its digest."""
    if file.metadata()[_DIGEST] != _digest(states, file.get_slice(_STATES).get_shape()[0]):
        left = remove_damaged(path)
        raise CorruptFileError(f"{path} is damaged: its content does not match its checksum{left and f'; {left}'}")


def _digest(states: Any, rows: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, rows, _DIGEST_ROWS):
        digest.update(states[start : start + _DIGEST_ROWS].contiguous().numpy())
    return digest.hexdigest()
