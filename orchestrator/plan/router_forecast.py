"""Forecast of stage 2: the disk space of router features, and what each of its jobs reserves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.plan.planning import Plan
from orchestrator.pool.capacity import JobResources, Node
from ttmoe.features import ALL_STATES
from ttmoe.subspace import MAX_SAMPLE_VALUES, SAMPLE_ROWS, max_directions
from ttmoe.surface import BUCKETS, CHARACTERS, SURFACE_WIDTH
from workers.cache.feature_store import LOOSE, PLAIN, SPLITS, STRIPPED, row_counts
from workers.routing.mixture import FEATURE_CHUNK
from workers.training.memory import estimate_pass_memory

if TYPE_CHECKING:
    from torch import nn

HALF, SINGLE = 2, 4  # bytes of a number in half and in single precision
ROUTER_PROCESS_BYTES = 5 * 10**8  # memory of a process that has imported torch
NGRAM_BYTES = 21  # of the n-grams of texts for each character, while they are put together (measured)
MAX_COMPARISON_BYTES = 4 * 10**9  # `compare_depths: auto` compares if the features of all layers take no more
LESS_FEATURES = "set router.layers to fewer layers, router.pooling to mean or last, or lower router.rows_per_task"
LESS_SPLIT = "lower router.rows_per_task or base.max_length, or add a node with more memory"


@dataclass(frozen=True)
class RouterForecast:
    """Forecast of stage 2.

    Attributes:
        disk: Approximate bytes on disk of the features of all tasks.
        features: What a job reserves that computes the features of a task.
        training: What the job reserves that trains the router: one job, with the cores of a node.
        testing: What a job reserves that answers the test rows of a task through the router.
        comparing: What the job reserves that trains and measures routers on fewer layers.
        compares_depths: Whether routers on fewer layers are trained and compared (``router.compare_depths``).
    """

    disk: int
    features: JobResources
    training: JobResources
    testing: JobResources
    comparing: JobResources
    compares_depths: bool


def forecast_router(plan: Plan, model: nn.Module) -> RouterForecast:
    """Forecast disk space and memory of stage 2 for all tasks of the plan.

    Args:
        plan: The plan.
        model: Body of the base; its modules may be on the meta device.
    """
    config: Any = model.config
    depth, hidden = config.num_hidden_layers, config.hidden_size
    every = [row_counts(expert.job.data, plan.config.router.most_rows) for expert in plan.experts.values()]
    counts = [{split: rows[split] for split in SPLITS} for rows in every]
    layer = len(plan.features.poolings) * hidden
    width, full_width = len(plan.features.indexes(depth)) * layer, (depth + 1) * layer
    setting = plan.config.router.compare_depths
    compares = setting is True
    if plan.engine.shards_base:
        compares = False  # the comparison loads the base in one process
    elif setting == "auto":
        compares = plan.stored == ALL_STATES and HALF * _loaded_rows(counts) * full_width <= MAX_COMPARISON_BYTES
    device = next(iter(plan.experts.values())).job.device
    base = estimate_pass_memory(model, plan.base, device, plan.engine, plan.processes).host
    states = HALF * len(plan.stored.indexes(depth)) * len(plan.stored.poolings) * hidden
    largest = max(max(count.values()) for count in counts)
    loaded = base + _router_bytes(len(counts), width)
    return RouterForecast(
        disk=sum(sum(count.values()) for count in counts) * states,
        # A split's features, and a copy while they are written.
        features=replace(plan.pass_resources, memory=base + 2 * largest * states),
        training=_with_cores_of_a_node(plan, ROUTER_PROCESS_BYTES + _fitting_bytes(plan, counts, width)),
        testing=replace(plan.pass_resources, memory=loaded),
        comparing=replace(plan.resources, memory=loaded + _training_bytes(counts, full_width)),
        compares_depths=compares,
    )


def _loaded_rows(counts: list[dict[str, int]]) -> int:
    """Return the most rows of features in memory at a time: two splits and validation, those of one task twice."""
    rows = {split: sum(count[split] for count in counts) for split in counts[0]}
    largest = max(max(count.values()) for count in counts)
    return max(rows["train"] + rows[PLAIN] + rows[LOOSE], rows[STRIPPED]) + rows["validation"] + largest


def _training_bytes(counts: list[dict[str, int]], width: int) -> int:
    """Return the bytes that the training of a router on features of this width takes beside its process."""
    tasks, directions = len(counts), max_directions(width, len(counts))
    rows = max(sum(count[split] for count in counts) for split in counts[0])
    sampled, chunk = min(SAMPLE_ROWS, MAX_SAMPLE_VALUES // width, rows), min(FEATURE_CHUNK, rows)
    # Values per feature: sampled rows, chunks in single precision, the gates during training, and directions.
    values = 2 * sampled + 2 * chunk + 6 * tasks + 2 * directions
    return HALF * _loaded_rows(counts) * width + SINGLE * (values * width + 4 * tasks * directions**2)


def _fitting_bytes(plan: Plan, counts: list[dict[str, int]], width: int) -> int:
    """Return the bytes that the fit of a router takes: its surface comes first, and its n-grams are gone afterwards."""
    features = _training_bytes(counts, width)
    if plan.config.router.surface == "none":
        return features
    train, validation = (sum(count[split] for count in counts) for split in ("train", "validation"))
    embeddings = 4 * SINGLE * BUCKETS * SURFACE_WIDTH  # weights, gradients and the two moments of Adam
    # Each training row, and a plain copy of it; then the validation rows, beside features.
    before, beside = (texts * CHARACTERS * NGRAM_BYTES for texts in (2 * train, validation))
    return embeddings + max(before, beside + features)


def _router_bytes(tasks: int, width: int) -> int:
    """Return the bytes of a loaded router: its gate, and the directions and whitenings of its thresholds."""
    directions = max_directions(width, tasks)
    return SINGLE * width * (tasks + directions) + HALF * tasks * directions**2


def _with_cores_of_a_node(plan: Plan, memory: int) -> JobResources:
    """Return what a job reserves that needs this memory and no GPU, and runs when no other job of the run does.

    Its cores are those of the largest node with this memory, and at most those of ``resources.max_parallel`` jobs.
    """
    job = replace(plan.resources, gpus=0.0, accelerator_type=None, memory=memory)
    most = max((node.cpus for node in plan.nodes if _has_room(node, job)), default=job.cpus)
    if limit := plan.config.resources.max_parallel:
        most = min(most, limit * job.cpus)
    return replace(job, cpus=max(job.cpus, most))


def _has_room(node: Node, job: JobResources) -> bool:
    return node.suits(job) and node.memory >= job.memory
