"""Router features of a task's rows, computed once and kept under the base's digest and the data's fingerprint."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ttmoe.bank import Bank
from ttmoe.base import Base
from ttmoe.encoding import collate, pool
from ttmoe.features import FeatureSpec, router_features
from workers.batches import evaluation_batches
from workers.bench import resident
from workers.prepared import Prepared
from workers.progress import Progress, Report
from workers.token_store import rows_of
from workers.trunk_cache import TrunkStates, find_trunk

SPLITS = ("train", "validation", "test")


def feature_path(base: Base, data: Prepared, spec: FeatureSpec, rows: int, cache: Path) -> Path:
    """Where the features of a task lie: the name says all that decides them."""
    decides = f"{base.digest} {base.dtype} {base.max_length} {data.fingerprint} {asdict(spec)} {rows}"
    return cache / "features" / f"{data.name}-{hashlib.sha256(decides.encode()).hexdigest()[:16]}.safetensors"


def compute_features(
    base: Base,
    data: Prepared,
    spec: FeatureSpec,
    rows: int,
    cache: Path,
    *,
    threads: int,
    device: str,
    report: Report,
    depth: int = 0,
) -> Path:
    """Write each split's features (rows, width), at most ``rows`` of the training split; nothing if they are there.

    Where the trunk's states at ``depth`` are kept for a split, the base starts from them; they are not made for this.
    """
    path = feature_path(base, data, spec, rows, cache)
    if path.is_file():
        return path
    torch.set_num_threads(threads)
    bench, features = resident(base, device), {}
    splits = {split: rows_of(base, bench.tokenizer, data, split, cache) for split in SPLITS}
    wanted = {split: min(rows, len(all_)) if split == "train" else len(all_) for split, all_ in splits.items()}
    done, total = 0, sum(wanted.values())
    for split, all_ in splits.items():
        states = find_trunk(all_, base=base, fingerprint=data.fingerprint, split=split, depth=depth,
                            device=bench.bank.device.type, width=bench.bank.width, cache=cache)  # fmt: skip
        found: list[Tensor] = [torch.empty(0)] * wanted[split]
        for batch in evaluation_batches(all_.items[: wanted[split]], 64):
            inputs = collate([all_.items[i].whole for i in batch], bench.pad_id, bench.bank.device)
            for i, row in zip(batch, _features(bench.bank, inputs, spec, batch, states).cpu(), strict=True):
                found[i] = row
            done += len(batch)
            report(Progress("features", done, total))
        features[split] = torch.stack(found)
    _write(path, features)
    return path


def load_features(path: Path) -> dict[str, Tensor]:
    """Features (rows, width) by split."""
    return load_file(path)


def _features(
    bank: Bank, inputs: dict[str, Tensor], spec: FeatureSpec, batch: list[int], states: TrunkStates | None
) -> Tensor:
    """As ``router_features``, from what the trunk's cache holds of these rows, if that is all that is below."""
    if not states or not states.pooling:  # nothing is kept, or a choice's options: the router reads wholes
        return router_features(bank.model, inputs, spec)
    trunk = bank.trunk(states.depth)
    indexes = spec.indexes(len(trunk.layers))
    if min(indexes) < states.depth and states.pooling != spec.pooling:
        return router_features(bank.model, inputs, spec)
    pooled = list(states.pooled(batch, bank.device).unbind(1))
    if max(indexes) >= states.depth:
        above = trunk.hidden_states_above(states.gather(batch, bank.device), inputs)
        pooled += [pool(hidden, inputs["attention_mask"], spec.pooling) for hidden in above]
    return torch.cat([F.normalize(pooled[i], dim=-1) for i in indexes], dim=-1)


def _write(path: Path, features: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(features, part)
    part.replace(path)
