"""The disk that router features would take, and the memory that a router made from them does, about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.plan.planning import Plan
from ttmoe.features import POOLINGS
from ttmoe.subspace import MOST_SAMPLED, SAMPLE, directions
from workers.cache.feature_store import row_counts
from workers.routing.router_training import FEATURE_CHUNK

if TYPE_CHECKING:
    from torch import nn

HALF, SINGLE = 2, 4  # bytes of a number
ROUTER_PROCESS_BYTES = 5 * 10**8  # bytes of a process with torch in it
MAX_COMPARISON_BYTES = 4 * 10**9  # features of all layers in memory, up to which `compare_depths: auto` compares
LESS_FEATURES = "lower router.rows_per_task, or set router.pooling to mean or last"


@dataclass(frozen=True)
class RouterForecast:
    """What stage 2 takes.

    Attributes:
        disk: Bytes on disk of all tasks' features.
        memory: Bytes of memory at the peak, the comparison of depths included where it is made.
        compares_depths: Whether routers of fewer layers are trained and compared (``router.compare_depths``).
    """

    disk: int
    memory: int
    compares_depths: bool


def forecast_router(plan: Plan, model: nn.Module) -> RouterForecast:
    """Forecast disk and memory of stage 2 for all tasks of the plan.

    Args:
        plan: The plan.
        model: The base's body; its modules may be on the meta device.
    """
    config: Any = model.config
    depth, hidden = config.num_hidden_layers, config.hidden_size
    counts = [row_counts(each.job.data, plan.config.router.rows_per_task) for each in plan.experts.values()]
    rows = {split: sum(count[split] for count in counts) for split in counts[0]}
    layer = len(plan.features.poolings) * hidden
    width, full_width = len(plan.features.indexes(depth)) * layer, (depth + 1) * layer
    # The rows of each task, and the same rows as one tensor.
    kept = 2 * max(rows["train"], rows["test"]) + rows["validation"]
    asked = plan.config.router.compare_depths
    compares = HALF * kept * full_width <= MAX_COMPARISON_BYTES if asked == "auto" else asked
    tasks, low = len(counts), directions(width, len(counts))
    sampled = min(SAMPLE, MOST_SAMPLED // width, rows["train"])
    # For each feature: sampled rows, chunks in full precision, the gates in training, and the directions.
    numbers = 2 * sampled + 2 * FEATURE_CHUNK + 6 * tasks + 2 * low
    features = HALF * kept * (full_width if compares else width)
    memory = ROUTER_PROCESS_BYTES + features + SINGLE * (numbers * width + 4 * tasks * low**2)
    states = (depth + 1) * len(POOLINGS) * hidden
    return RouterForecast(HALF * sum(rows.values()) * states, memory, compares)
