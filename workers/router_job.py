"""The router from start to finish: trained on cached features of the tasks' mixture, saved, tested."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.base import Base
from ttmoe.features import FeatureSpec
from ttmoe.router import LinearRouter, save_router
from workers.feature_store import load_features
from workers.progress import Progress, Report
from workers.settings import Router

RESULT = "result.json"


@dataclass(frozen=True)
class RouterJob:
    """All that decides a router: each task's feature file, and the lock (task -> expert spec hash)."""

    base: Base
    features: FeatureSpec
    files: dict[str, str]
    lock: dict[str, str]
    settings: Router
    seed: int
    spec_hash: str
    folder: str
    threads: int = 1


@dataclass(frozen=True)
class RouterResult:
    """``confusion`` counts the mixed test rows: true tasks down, chosen ones across, both in the order of ``tasks``."""

    tasks: tuple[str, ...]
    metrics: dict[str, float]
    confusion: list[list[int]]
    spec_hash: str
    folder: str


def run_router(job: RouterJob, report: Report) -> RouterResult:
    """Train the router and measure it on the mixed test splits."""
    torch.set_num_threads(job.threads)
    began = time.monotonic()
    tasks = tuple(job.files)
    loaded = {task: load_features(Path(path)) for task, path in job.files.items()}
    data = {split: _mixture([loaded[task][split] for task in tasks]) for split in ("train", "validation", "test")}
    torch.manual_seed(job.seed)
    router = LinearRouter(tasks, data["train"][0].shape[1], job.features, job.settings.noise)
    router.fit_scale(data["train"][0])
    best = fit_router(router, data["train"], data["validation"], job.settings, report)
    chosen = _choices(router, data["test"][0])
    confusion = torch.zeros(len(tasks), len(tasks), dtype=torch.long)
    confusion.index_put_((data["test"][1], chosen), torch.ones(len(chosen), dtype=torch.long), accumulate=True)
    metrics = {
        "validation.routing_accuracy": best,
        "seconds.training": time.monotonic() - began,
        "test.routing_accuracy": float((chosen == data["test"][1]).float().mean()),
        "parameters": float(sum(p.numel() for p in router.parameters())),
    }
    save_router(router, Path(job.folder), job.base.identity(), job.lock, metrics)
    result = RouterResult(tasks, metrics, confusion.tolist(), job.spec_hash, job.folder)
    Path(job.folder, RESULT).write_text(json.dumps(asdict(result), indent=1))
    return result


def fit_router(
    router: LinearRouter,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    settings: Router,
    report: Report,
) -> float:
    """Supervised training on (features, task indexes), every task with the same weight; keeps the best epoch.

    Returns the validation accuracy. Ties go to the lower validation loss.
    """
    features, labels = train
    weights = 1 / torch.bincount(labels, minlength=len(router.tasks)).clamp(min=1).float()
    weights *= len(labels) / len(router.tasks)
    optimizer = torch.optim.AdamW(router.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    steps = settings.epochs * math.ceil(len(labels) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, kept = (-1.0, 0.0), {}
    for epoch in range(1, settings.epochs + 1):
        router.train()
        for batch in torch.randperm(len(labels)).split(settings.batch_size):
            loss = F.cross_entropy(router(features[batch]), labels[batch], weight=weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        router.eval()
        with torch.no_grad():
            scores = router(validation[0])
        accuracy = float((scores.argmax(-1) == validation[1]).float().mean())
        quality = (accuracy, -float(F.cross_entropy(scores, validation[1])))
        if quality > best:
            best, kept = quality, {key: value.clone() for key, value in router.state_dict().items()}
        report(
            Progress(
                "training",
                epoch,
                settings.epochs,
                {"train.loss": loss.item(), "validation.accuracy": accuracy},
            )
        )
    router.load_state_dict(kept)
    return best[0]


def _mixture(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    labels = [torch.full((len(part),), i) for i, part in enumerate(parts)]
    return torch.cat(parts), torch.cat(labels)


@torch.no_grad()
def _choices(router: LinearRouter, features: Tensor) -> Tensor:
    return router.eval()(features).argmax(-1)
