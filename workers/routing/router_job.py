"""The router from start to finish: made from cached features of the tasks' mixture, saved, tested."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ttmoe.base import Base
from ttmoe.features import FeatureSpec
from ttmoe.router import Router, save_router
from workers.cache.feature_store import LOOSE, STRIPPED, load_features, row_counts
from workers.data.prepared import PreparedTask
from workers.progress import Progress, ProgressCallback
from workers.routing.router_training import FEATURE_CHUNK, Mixture, calibration_error, fit_router
from workers.training.settings import RouterSettings

ROUTER_RESULT_FILE = "result.json"


@dataclass(frozen=True)
class RouterJob:
    """All that decides a router: each task's data and the folder of its features, and the lock (task -> spec hash)."""

    base: Base
    features: FeatureSpec
    data: dict[str, PreparedTask]
    files: dict[str, str]
    lock: dict[str, str]
    settings: RouterSettings
    seed: int
    spec_hash: str
    folder: str
    threads: int = 1

    def load(self, split: str, features: FeatureSpec | None = None) -> Mixture:
        """All tasks' features of a split, as the router reads them (or one of other ``features``)."""
        return Mixture.of([
            load_features(Path(self.files[task]), split, row_counts(data, self.settings.rows_per_task)[split],
                          features or self.features)
            for task, data in self.data.items()
        ])  # fmt: skip


@dataclass(frozen=True)
class RouterResult:
    """``confusion`` counts the mixed test rows: true tasks down, chosen ones across, both in the order of ``tasks``."""

    tasks: tuple[str, ...]
    metrics: dict[str, float]
    confusion: list[list[int]]
    spec_hash: str
    folder: str


def run_router(job: RouterJob, report: ProgressCallback) -> RouterResult:
    """Make the router and measure it on the mixed test splits."""
    torch.set_num_threads(job.threads)
    began, tasks = time.monotonic(), tuple(job.data)
    validation = job.load("validation")
    router = build_router(job, job.features, validation, report)
    seconds = time.monotonic() - began

    def pulse() -> None:
        report(Progress("testing", job.settings.epochs, job.settings.epochs))

    test, stripped = job.load("test"), job.load(STRIPPED)
    shares, chosen, known = route_rows(router, test, pulse)
    right = chosen == test.labels
    confusion = torch.zeros(len(tasks), len(tasks), dtype=torch.long)
    confusion.index_put_((test.labels, chosen), torch.ones_like(chosen), accumulate=True)
    metrics = {
        "validation.routing_accuracy": routing_accuracy(router, validation),
        "test.routing_accuracy": float(right.float().mean()),
        "test.calibration_error": calibration_error(shares, right),
        "test.unknown": 1 - float(known.float().mean()),
        "stripped.routing_accuracy": routing_accuracy(router, stripped),
        "seconds.training": seconds,
        "parameters": float(sum(p.numel() for p in router.parameters())),
    }
    save_router(router, Path(job.folder), job.base.identity(), job.lock, metrics, job.settings.kind)
    result = RouterResult(tasks, metrics, confusion.tolist(), job.spec_hash, job.folder)
    Path(job.folder, ROUTER_RESULT_FILE).write_text(json.dumps(asdict(result), indent=1))
    return result


def build_router(job: RouterJob, features: FeatureSpec, validation: Mixture, report: ProgressCallback) -> Router:
    """A router of the job that reads these features, drawn from the job's seed."""
    torch.manual_seed(job.seed)
    loose = job.load(LOOSE, features) if job.settings.unknown and job.settings.loose else None
    return fit_router(tuple(job.data), job.load("train", features), validation, features, job.settings, report, loose)


def route_rows(router: Router, rows: Mixture, pulse: Callable[[], None]) -> tuple[Tensor, Tensor, Tensor]:
    """For each row the probability of the expert that was chosen, its index, and whether the row is known."""
    shares, chosen, known = [], [], []
    place = {task: i for i, task in enumerate(router.tasks)}
    for part in rows.features.split(FEATURE_CHUNK):
        routes = router.route(part)
        shares += routes.shares
        chosen += [place[name] for name in routes.names]
        known += routes.known
        pulse()
    return torch.tensor(shares), torch.tensor(chosen), torch.tensor(known)


def routing_accuracy(router: Router, rows: Mixture) -> float:
    """Return the share of rows whose highest score is that of their own task."""
    return float((rows.scores(router).argmax(-1) == rows.labels).float().mean())
