"""The disk that router features would take, and the memory that a router made from them does, about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.plan import Plan
from ttmoe.features import POOLINGS
from ttmoe.subspace import MOST_SAMPLED, SAMPLE, directions
from workers.feature_store import row_counts
from workers.router_training import CHUNK

if TYPE_CHECKING:
    from torch import nn

HALF, SINGLE = 2, 4  # bytes of a number
PROCESS = 5 * 10**8  # bytes of a process with torch in it
LESS_FEATURES = "lower router.rows_per_task, or set router.pooling to mean or last"


@dataclass(frozen=True)
class RouterForecast:
    """Bytes on disk of all tasks' features, and of memory while the router is made and compared with others.

    These others read up to every layer, whatever the router reads (``workers.depths``).
    """

    disk: int
    memory: int


def forecast_router(plan: Plan, model: nn.Module) -> RouterForecast:
    """The forecast for all the plan's tasks."""
    config: Any = model.config
    depth, hidden = config.num_hidden_layers, config.hidden_size
    counts = [row_counts(each.job.data, plan.config.router.rows_per_task) for each in plan.experts.values()]
    rows = {split: sum(count[split] for count in counts) for split in counts[0]}
    layer = len(plan.features.poolings) * hidden
    width, widest = len(plan.features.indexes(depth)) * layer, (depth + 1) * layer
    tasks, low = len(counts), directions(width, len(counts))
    kept = 2 * max(rows["train"], rows["test"]) + rows["validation"]  # each task's rows, and all of them as one
    sampled = min(SAMPLE, MOST_SAMPLED // width, rows["train"])
    numbers = 2 * sampled + 2 * CHUNK + 6 * tasks + 2 * low  # of each feature: rows, gates as they train, directions
    memory = PROCESS + HALF * kept * widest + SINGLE * (numbers * width + 4 * tasks * low**2)
    states = (depth + 1) * len(POOLINGS) * hidden
    return RouterForecast(HALF * sum(rows.values()) * states, memory)
