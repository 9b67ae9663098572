"""The disk that cached trunk states would take, about, and the work that they save."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from orchestrator.plan.planning import Plan
from ttmoe.targets import layer_list
from workers.cache.trunk_layout import trunk_size
from workers.data.prepared import PreparedTask
from workers.data.splits import SPLIT_NAMES

if TYPE_CHECKING:
    from torch import nn

BYTES_PER_TOKEN = 4  # of text; what tokenizers of English come to


@dataclass(frozen=True)
class TrunkForecast:
    """``bytes`` on disk, about, of the tasks that are to be trained; ``share`` of the base's layers that their steps
    skip, on average; ``fits`` says whether storage.trunk_gb holds it.
    """

    bytes: int
    share: float
    fits: bool


def forecast_trunk(plan: Plan, model: nn.Module, tasks: Collection[str]) -> TrunkForecast | None:
    """The forecast for these tasks; None where they have no trunk, or it is not kept."""
    depths = {task: plan.experts[task].job.adapter.first_layer for task in tasks}
    budget = plan.config.storage.trunk_gb * 10**9
    if not budget or not any(depths.values()):
        return None
    sizes = {}
    for task, depth in depths.items():
        data = plan.experts[task].job.data
        if depth:  # tasks of the same data share their states
            tokens, sequences = count_tokens(data, plan.base.max_length)
            kept = sequences if data.kind not in ("choice", "generate") else 0
            width = model.config.hidden_size  # type: ignore[union-attr]
            sizes[data.fingerprint, depth] = trunk_size(plan.base, tokens, width, sequences=kept, depth=depth)  # type: ignore[arg-type]
    total = sum(sizes.values())
    return TrunkForecast(total, fmean(depths.values()) / len(layer_list(model)), total <= budget)


def count_tokens(data: PreparedTask, max_length: int) -> tuple[int, int]:
    """Tokens, about, and sequences of a task's rows, by the sizes that its files state: no row is read."""
    from pyarrow.parquet import read_metadata

    tokens = sequences = 0
    for split in SPLIT_NAMES:
        meta = read_metadata(data.folder / f"{split}.parquet")
        rows, options = meta.num_rows, len(data.label_names) if data.kind == "choice" else 1
        columns = [meta.row_group(i).column(j) for i in range(meta.num_row_groups) for j in range(meta.num_columns)]
        size = {name: sum(c.total_uncompressed_size for c in columns if c.path_in_schema.startswith(name))
                for name in ("texts", "choices", "answer")}  # fmt: skip
        text = size["texts"] * options + size["answer"] + (size["choices"] if data.kind == "choice" else 0)
        tokens += min(rows * options * max_length, text // BYTES_PER_TOKEN + 2 * rows * options)
        sequences += rows * options
    return tokens, sequences
