"""Router features of a task's rows: every hidden state of the frozen base, pooled, for every router trained later.

They are computed once for each row and kept under the base's digest and the data's fingerprint, at unit length in half
precision. All layers are kept, in both poolings, so that every router reads the same files; asked for more rows, only
those that are not there yet are computed.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.base import Base
from ttmoe.encoding import collate
from ttmoe.features import POOLINGS, FeatureSpec, pool_states
from workers.base.resident import ResidentBase, load_resident_base
from workers.cache.tokens import load_tokenized_rows
from workers.cache.trunk_states import TrunkStates, find_trunk_states
from workers.data.prepared import PreparedTask, load_split
from workers.data.text_forms import strip_case_and_punctuation, strip_formatting
from workers.progress import Progress, ProgressCallback
from workers.recipes import RECIPES
from workers.training.batches import TokenizedRows, evaluation_batches, tokenize

STRIPPED, LOOSE = "stripped", "loose"
TEXT_FORMS = {
    STRIPPED: ("test", strip_formatting),
    LOOSE: ("validation", strip_case_and_punctuation),
}  # the first rows of a split in another form
SPLITS = ("train", "validation", "test", *TEXT_FORMS)
FORM_ROWS = 500
ABANDONED = 24 * 3600  # seconds since it was last written to, after which a scrap is nobody's
_STATES = "states"


def feature_folder(base: Base, data: PreparedTask, cache: Path) -> Path:
    """Where the features of a task lie: the name says all that decides them."""
    decides = f"{RECIPES['features']} {base.digest} {base.dtype} {base.max_length} {data.fingerprint}"
    return cache / "features" / f"{data.name}-{hashlib.sha256(decides.encode()).hexdigest()[:16]}"


def row_counts(data: PreparedTask, rows: int) -> dict[str, int]:
    """Rows of each split: all of them, but at most ``rows`` for training, and fewer of those in another form."""
    there = {split: sum(counts.values()) for split, counts in data.counts.items()}
    forms = {name: min(FORM_ROWS, there[split]) for name, (split, _) in TEXT_FORMS.items()}
    return there | {"train": min(rows, there["train"])} | forms


def features_complete(folder: Path, data: PreparedTask, rows: int) -> bool:
    """Whether all that ``compute_features`` would write is there."""
    return all(_file(folder, split, count) for split, count in row_counts(data, rows).items())


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
) -> Path:
    """Write what is not there yet of each split's features, at most ``rows`` of the training split; their folder.

    Where the trunk's states at ``depth`` are kept for a split, the base starts from them; they are not made for this.
    """
    folder = feature_folder(base, data, cache)
    lacking = {s: count for s, count in row_counts(data, rows).items() if not _file(folder, s, count)}
    if not lacking:
        return folder
    torch.set_num_threads(threads)
    bench = load_resident_base(base, device)
    done, total = 0, sum(lacking.values())
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in lacking.items():
        all_ = _rows(base, bench, data, split, cache)
        states = find_trunk_states(all_, base=base, fingerprint=data.fingerprint, split=split, depth=depth,
                            device=bench.bank.device.type, width=bench.bank.width, cache=cache)  # fmt: skip
        kept = _longest(folder, split)
        start = len(kept) if kept is not None else 0
        done += start
        fresh: list[Tensor] = [torch.empty(0)] * (count - start)
        for batch in evaluation_batches(all_.items[start:count], 64):
            numbers = [start + i for i in batch]
            inputs = collate([all_.items[i].whole for i in numbers], bench.pad_id, bench.bank.device)
            found = _pooled(bench.bank, inputs, numbers, states).half().cpu()
            for i, row in zip(batch, found, strict=True):
                fresh[i] = row
            done += len(batch)
            report(Progress("features", done, total))
        new = torch.stack(fresh)
        _write(folder / f"{split}-{count}.safetensors", new if kept is None else torch.cat([kept, new]))
    return folder


def load_features(folder: Path, split: str, count: int, spec: FeatureSpec) -> Tensor:
    """The features (count, layers x poolings x width) that a router of ``spec`` reads of a split's first rows, halves.

    Raises FileNotFoundError where so many are not there.
    """
    path = _file(folder, split, count)
    if path is None:
        raise FileNotFoundError(f"{count} rows of {split} are not in {folder}")
    try:
        opened = safe_open(path, "pt")
    except FileNotFoundError:  # another run has put one with more rows in its place
        return load_features(folder, split, count, spec)
    with opened as file:
        whole = file.get_slice(_STATES)
        indexes = spec.indexes(whole.get_shape()[1] - 1)
        first = POOLINGS.index(spec.poolings[0])
        part = whole[:count, min(indexes) : max(indexes) + 1, first : first + len(spec.poolings)]
    return part[:, [i - min(indexes) for i in indexes]].flatten(1)


def _rows(base: Base, bench: ResidentBase, data: PreparedTask, split: str, cache: Path) -> TokenizedRows:
    if split not in TEXT_FORMS:
        return load_tokenized_rows(base, bench.tokenizer, data, split, cache)
    source, form = TEXT_FORMS[split]
    return tokenize(bench.tokenizer, [form(each) for each in load_split(data, source)[:FORM_ROWS]], base.max_length)


def _pooled(bank: Bank, inputs: dict[str, Tensor], rows: Sequence[int], states: TrunkStates | None) -> Tensor:
    """As ``pool_states`` of all layers, from what the trunk's cache holds of these rows where it serves."""
    if not states or not states.wholes:  # nothing is kept, or the options of a choice
        return pool_states(bank.model(**inputs, output_hidden_states=True).hidden_states, inputs["attention_mask"])
    above = bank.trunk(states.depth).hidden_states_above(states.gather(rows, bank.device), inputs)
    return torch.cat([states.pooled(rows, bank.device), pool_states(above, inputs["attention_mask"])], dim=1)


def _file(folder: Path, split: str, count: int) -> Path | None:
    """A file with so many of the split's rows, or more."""
    return min((path for path in folder.glob(f"{split}-*.safetensors") if _count(path) >= count),
               key=_count, default=None)  # fmt: skip


def _count(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _longest(folder: Path, split: str) -> Tensor | None:
    path = max(folder.glob(f"{split}-*.safetensors"), key=_count, default=None)
    if path is None:
        return None
    with safe_open(path, "pt") as file:
        return file.get_tensor(_STATES)


def _write(path: Path, states: Tensor) -> None:
    """Whole or not at all; what holds fewer rows of the split, or was left by a killed process, is removed."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        save_file({_STATES: states.contiguous()}, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    split, count = path.stem.rpartition("-")[0], _count(path)
    for other in path.parent.glob(f"{split}-*.safetensors"):
        if _count(other) < count:
            other.unlink(missing_ok=True)
    for scrap in path.parent.glob(".*.safetensors.*"):
        with suppress(FileNotFoundError):  # another process may clear up too
            if time.time() - scrap.stat().st_mtime > ABANDONED:
                scrap.unlink()
