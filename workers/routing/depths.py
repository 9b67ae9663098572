"""What it costs and brings to read less of the base: routers of the lower layers alone, and how fast they answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from ttmoe.features import FeatureSpec
from ttmoe.routed import RoutedModel
from ttmoe.router import ROUTER_MANIFEST
from workers.data.prepared import load_split
from workers.progress import Progress, ProgressCallback
from workers.routing.routed_accuracy import load_routed_model
from workers.routing.router_job import RouterJob, build_router, routing_accuracy
from workers.training.batches import to_input

SPREAD = 5  # depths over the base, beside the trunk's top
BATCH = 32
ROUNDS = 7
EPOCHS = 5  # of each of these routers, at most: enough to compare them by


@dataclass(frozen=True)
class DepthResult:
    """A router of the hidden states up to ``depth``: its accuracy on the mixed test rows, and seconds for an answer.

    ``one_pass`` where no expert of the library adapts a layer below.
    """

    depth: int
    routing_accuracy: float
    validation_accuracy: float
    one_pass: bool
    seconds_of_one: float
    seconds_of_batch: float


def compare_depths(job: RouterJob, folder: Path, trunk: int, *, threads: int, device: str,
                   report: ProgressCallback) -> list[DepthResult]:  # fmt: skip
    """Routers of the job's kind for several depths, the trunk's top among them, and the model's time with each."""
    torch.set_num_threads(threads)
    model = load_routed_model(folder, (folder / ROUTER_MANIFEST).read_text(), job.base, device)
    depths = choose_depths(len(model.bank.trunk(0).layers), trunk)
    fewer = {"epochs": min(EPOCHS, job.settings.epochs), "unknown": 0.0}
    job = replace(job, settings=job.settings.model_copy(update=fewer))
    texts = [to_input(e) for data in job.data.values() for e in load_split(data, "test")[: -(-BATCH // len(job.data))]]
    found = []
    for place, depth in enumerate(depths):
        spec = FeatureSpec(tuple(range(depth + 1)), job.features.pooling)

        def pulse(progress: Progress, place: int = place) -> None:
            report(Progress("depths", place, len(depths)))

        validation, test = job.load("validation", spec), job.load("test", spec)
        router = build_router(job, spec, validation, pulse)
        on_test, on_validation = routing_accuracy(router, test), routing_accuracy(router, validation)
        other = RoutedModel(model.bank, router, model.manifests, model.tokenizer, model.max_length)
        seconds = [_seconds(other, texts[:count]) for count in (1, BATCH)]
        found.append(DepthResult(depth, on_test, on_validation, other.one_pass, *seconds))
    report(Progress("depths", len(depths), len(depths)))
    return found


def choose_depths(layers: int, trunk: int) -> list[int]:
    """The trunk's top, the base's top and its embeddings, and what lies evenly between them."""
    spread = {round(i * layers / (SPREAD - 1)) for i in range(SPREAD)}
    return sorted(spread | {trunk})


def _seconds(model: RoutedModel, texts: list) -> float:
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        model.predict(texts)
        found.append(time.perf_counter() - began)
    return median(found[1:])
