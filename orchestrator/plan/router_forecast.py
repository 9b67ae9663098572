"""Forecast of the disk space of router features, and of the memory of the router's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.plan.planning import Plan
from ttmoe.features import POOLINGS
from ttmoe.subspace import MAX_SAMPLE_VALUES, SAMPLE_ROWS, max_directions
from workers.cache.feature_store import row_counts
from workers.routing.router_training import FEATURE_CHUNK

if TYPE_CHECKING:
    from torch import nn

HALF, SINGLE = 2, 4  # bytes of a number in half and in single precision
ROUTER_PROCESS_BYTES = 5 * 10**8  # memory of a process that has imported torch
MAX_COMPARISON_BYTES = 4 * 10**9  # `compare_depths: auto` compares if the features of all layers take no more
LESS_FEATURES = "lower router.rows_per_task, or set router.pooling to mean or last"


@dataclass(frozen=True)
class RouterForecast:
    """Forecast of stage 2.

    Attributes:
        disk: Approximate bytes on disk of the features of all tasks.
        memory: Approximate peak memory in bytes, with the comparison of depths if it is made.
        compares_depths: Whether routers on fewer layers are trained and compared (``router.compare_depths``).
    """

    disk: int
    memory: int
    compares_depths: bool


def forecast_router(plan: Plan, model: nn.Module) -> RouterForecast:
    """Forecast disk space and memory of stage 2 for all tasks of the plan.

    Args:
        plan: The plan.
        model: Body of the base; its modules may be on the meta device.
    """
    config: Any = model.config
    depth, hidden = config.num_hidden_layers, config.hidden_size
    counts = [row_counts(expert.job.data, plan.config.router.rows_per_task) for expert in plan.experts.values()]
    rows = {split: sum(count[split] for count in counts) for split in counts[0]}
    layer = len(plan.features.poolings) * hidden
    width, full_width = len(plan.features.indexes(depth)) * layer, (depth + 1) * layer
    # Rows in memory: those of each task, and the same rows as one tensor.
    loaded = 2 * max(rows["train"], rows["test"]) + rows["validation"]
    setting = plan.config.router.compare_depths
    compares = HALF * loaded * full_width <= MAX_COMPARISON_BYTES if setting == "auto" else setting
    tasks, directions = len(counts), max_directions(width, len(counts))
    sampled = min(SAMPLE_ROWS, MAX_SAMPLE_VALUES // width, rows["train"])
    # Values per feature: sampled rows, chunks in single precision, the gates during training, and directions.
    values = 2 * sampled + 2 * FEATURE_CHUNK + 6 * tasks + 2 * directions
    features = HALF * loaded * (full_width if compares else width)
    memory = ROUTER_PROCESS_BYTES + features + SINGLE * (values * width + 4 * tasks * directions**2)
    states = (depth + 1) * len(POOLINGS) * hidden
    return RouterForecast(HALF * sum(rows.values()) * states, memory, compares)
