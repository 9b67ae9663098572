"""Router features of a task's rows, computed once and kept under the base's digest and the data's fingerprint."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ttmoe.base import Base, load_body, load_tokenizer
from ttmoe.encoding import collate, pad_id_of
from ttmoe.features import FeatureSpec, router_features
from workers.batches import evaluation_batches, tokenise
from workers.prepared import Prepared, load_split
from workers.progress import Progress, Report

SPLITS = ("train", "validation", "test")


def feature_path(base: Base, data: Prepared, spec: FeatureSpec, rows: int, cache: Path) -> Path:
    """Where the features of a task lie: the name says all that decides them."""
    decides = f"{base.digest} {base.dtype} {base.max_length} {data.fingerprint} {asdict(spec)} {rows}"
    return cache / "features" / f"{data.name}-{hashlib.sha256(decides.encode()).hexdigest()[:16]}.safetensors"


def compute_features(
    base: Base, data: Prepared, spec: FeatureSpec, rows: int, cache: Path, *, threads: int, device: str, report: Report
) -> Path:
    """Write each split's features (rows, width), at most ``rows`` of the training split; nothing if they are there."""
    path = feature_path(base, data, spec, rows, cache)
    if path.is_file():
        return path
    torch.set_num_threads(threads)
    model, tokenizer = load_body(base, device), load_tokenizer(base)
    splits = {split: load_split(data, split)[: rows if split == "train" else None] for split in SPLITS}
    total = sum(len(examples) for examples in splits.values())
    done, features = 0, {}
    for split, examples in splits.items():
        items = tokenise(tokenizer, examples, base.max_length).items
        found: list[Tensor] = [torch.empty(0)] * len(items)
        for batch in evaluation_batches(items, 64):
            inputs = collate([items[i].whole for i in batch], pad_id_of(tokenizer), model.device)  # type: ignore[arg-type]
            for i, row in zip(batch, router_features(model, inputs, spec).cpu(), strict=True):
                found[i] = row
            done += len(batch)
            report(Progress("features", done, total))
        features[split] = torch.stack(found)
    _write(path, features)
    return path


def load_features(path: Path) -> dict[str, Tensor]:
    """Features (rows, width) by split."""
    return load_file(path)


def _write(path: Path, features: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(features, part)
    part.replace(path)
