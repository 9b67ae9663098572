"""Comparison of routers that read fewer layers of the base: accuracy and latency by depth."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from ttmoe.encoding import Input
from ttmoe.features import FeatureSpec
from ttmoe.routed import RoutedModel
from ttmoe.router import ROUTER_MANIFEST
from workers.data.prepared import load_split
from workers.progress import Progress, ProgressCallback
from workers.routing.routed_accuracy import load_routed_model
from workers.routing.router_job import RouterJob, build_router, routing_accuracy
from workers.training.batches import to_input

COMPARED_DEPTHS = 5  # evenly spaced over the base; the trunk's depth is added
TIMED_BATCH = 32  # rows of the batch whose prediction is timed
TIMED_ROUNDS = 4  # predictions of each batch; the first one warms up
COMPARISON_ROWS = 1000  # maximum training rows of each task; the library's router may have more
COMPARISON_EPOCHS = 5  # maximum training epochs of each router: enough for a comparison


@dataclass(frozen=True)
class DepthResult:
    """Accuracy and latency of the routed model with a router that reads the hidden states up to one depth.

    Attributes:
        depth: Index of the last hidden state that the router reads; 0 is the embeddings.
        validation_accuracy: Routing accuracy on the validation rows of all tasks.
        one_pass: Whether routing and prediction share one pass: no expert adapts a layer that the router reads.
        seconds_of_one: Median seconds to predict one row.
        seconds_of_batch: Median seconds to predict a batch of ``TIMED_BATCH`` rows.
    """

    depth: int
    validation_accuracy: float
    one_pass: bool
    seconds_of_one: float
    seconds_of_batch: float


def compare_depths(job: RouterJob, folder: Path, trunk: int, *, threads: int, device: str,
                   report: ProgressCallback) -> list[DepthResult]:  # fmt: skip
    """Train routers for several depths and measure the routed model with each of them.

    Args:
        job: Job of the library's router; the compared routers are not saved.
        folder: Folder of the library's router and experts.
        trunk: Depth of the trunk.
        threads: Number of CPU threads.
        device: Device of the model.
        report: Receives the progress.

    Returns:
        One result for each depth, in ascending order.
    """
    torch.set_num_threads(threads)
    model = load_routed_model(folder, (folder / ROUTER_MANIFEST).read_text(), job.base, device)
    depths = choose_depths(len(model.bank.trunk(0).layers), trunk)
    settings = {
        "epochs": min(COMPARISON_EPOCHS, job.settings.epochs),
        "rows_per_task": min(COMPARISON_ROWS, job.settings.most_rows),
        "unknown": 0.0,
    }
    job = replace(job, settings=job.settings.model_copy(update=settings))
    rows_per_task = -(-TIMED_BATCH // len(job.data))
    inputs = [to_input(e) for data in job.data.values() for e in load_split(data, "test")[:rows_per_task]]
    surface = model.router.surface  # it does not depend on the layers
    results = []
    for index, depth in enumerate(depths):
        spec = FeatureSpec(tuple(range(depth + 1)), job.features.pooling)
        beat = partial(report, Progress("depths", index, len(depths)))
        validation = job.load("validation", beat, spec, surface)
        router = build_router(job, spec, validation, lambda progress: None, beat, surface)
        validation_accuracy = routing_accuracy(router, validation)
        routed = RoutedModel(model.bank, router, model.manifests, model.tokenizer, model.max_length)
        seconds = [_median_seconds(routed, inputs[:count]) for count in (1, TIMED_BATCH)]
        results.append(DepthResult(depth, validation_accuracy, routed.one_pass, *seconds))
    report(Progress("depths", len(depths), len(depths)))
    return results


def choose_depths(layers: int, trunk: int) -> list[int]:
    """Return the depths to compare: embeddings (0), all ``layers``, depths evenly between them, and the trunk's."""
    even = {round(i * layers / (COMPARED_DEPTHS - 1)) for i in range(COMPARED_DEPTHS)}
    return sorted(even | {trunk})


def _median_seconds(model: RoutedModel, inputs: list[Input]) -> float:
    seconds = []
    for _ in range(TIMED_ROUNDS):
        started = time.perf_counter()
        model.predict(inputs)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
