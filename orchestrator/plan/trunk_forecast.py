"""Forecast of the disk space of cached trunk states, and of the computation that they save."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from orchestrator.plan.planning import Plan
from ttmoe.architectures import layer_list
from ttmoe.generating_kinds import GENERATING_KINDS
from workers.cache.trunk_layout import trunk_size
from workers.data.prepared import PreparedTask
from workers.data.splits import SPLIT_NAMES

if TYPE_CHECKING:
    from torch import nn

BYTES_PER_TOKEN = 4  # bytes of text, typical for tokenizers of English


@dataclass(frozen=True)
class TrunkForecast:
    """Forecast of the cached trunk states of the tasks that will be trained.

    Attributes:
        bytes: Approximate bytes on disk.
        share: Mean share of the base's layers that training steps skip.
        fits: Whether ``bytes`` is within ``storage.trunk_gb``.
    """

    bytes: int
    share: float
    fits: bool


def forecast_trunk(plan: Plan, model: nn.Module, tasks: Collection[str]) -> TrunkForecast | None:
    """Forecast the cached trunk states.

    Args:
        plan: The plan.
        model: Body of the base; its modules may be on the meta device.
        tasks: Tasks that will be trained.

    Returns:
        The forecast, or None if all tasks adapt the lowest layer, the cache is disabled, or the base is divided.
    """
    depths = {task: plan.experts[task].job.adapter.first_layer for task in tasks}
    budget = plan.config.storage.trunk_gb * 10**9
    if not budget or not any(depths.values()) or plan.engine.shards_base:
        return None
    sizes: dict[tuple[str, int], int] = {}
    skipped = dict.fromkeys(tasks, 0)
    for task, depth in depths.items():
        job = plan.experts[task].job
        data = job.data
        if not depth:
            continue
        train_tokens, train_sequences = count_tokens(data, plan.base.max_length, ("train",))
        tokens, sequences = count_tokens(data, plan.base.max_length, ("validation", "test"))
        if job.caches_training_trunk(sum(data.counts["train"].values()), train_tokens):
            skipped[task], tokens, sequences = depth, tokens + train_tokens, sequences + train_sequences
        pooled = sequences if data.kind not in ("choice", *GENERATING_KINDS) else 0
        width = model.config.hidden_size  # type: ignore[union-attr]
        size = trunk_size(plan.base, tokens, width, sequences=pooled, depth=depth)  # type: ignore[arg-type]
        key = data.fingerprint, depth  # tasks with the same data and depth share their states
        sizes[key] = max(size, sizes.get(key, 0))
    total = sum(sizes.values())
    return TrunkForecast(total, fmean(skipped.values()) / len(layer_list(model)), total <= budget)


def count_tokens(data: PreparedTask, max_length: int, splits: Collection[str] = SPLIT_NAMES) -> tuple[int, int]:
    """Estimate the size of a task from the metadata of its files, without reading rows.

    Args:
        data: Prepared task.
        max_length: Maximum number of tokens of a sequence.
        splits: Splits to count.

    Returns:
        The approximate number of tokens, and the number of sequences.
    """
    options = (len(data.label_names) or 1) if data.kind == "choice" else 1
    if data.declared_tokens:
        sequences = options * sum(data.rows[split] for split in splits)
        return sequences * min(max_length, data.declared_tokens), sequences
    from pyarrow.parquet import read_metadata

    tokens = sequences = 0
    for split in splits:
        meta = read_metadata(data.folder / f"{split}.parquet")
        rows = meta.num_rows
        columns = [meta.row_group(i).column(j) for i in range(meta.num_row_groups) for j in range(meta.num_columns)]
        size = {name: sum(c.total_uncompressed_size for c in columns if c.path_in_schema.startswith(name))
                for name in ("texts", "choices", "answer", "messages")}  # fmt: skip
        text = size["texts"] * options + size["answer"] + (size["choices"] if data.kind == "choice" else 0)
        text = size["messages"] if data.kind == "chat" else text
        tokens += min(rows * options * max_length, text // BYTES_PER_TOKEN + 2 * rows * options)
        sequences += rows * options
    return tokens, sequences
