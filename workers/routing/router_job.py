"""Train, save and test a router on cached features of all tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttmoe.base import Base
from ttmoe.features import FeatureSpec
from ttmoe.router import Router, save_router
from ttmoe.surface import Ngrams, Surface, surface_text
from workers.cache.feature_store import LOOSE, PLAIN, STRIPPED, load_features, load_form, row_counts
from workers.data.prepared import PreparedTask
from workers.progress import Progress, ProgressCallback
from workers.routing.mixture import FEATURE_CHUNK, Mixture, no_beat
from workers.routing.router_training import fit_router
from workers.routing.surface_training import embed_all, fit_surface
from workers.training.batches import to_input
from workers.training.settings import RouterSettings

ROUTER_RESULT_FILE = "result.json"
ROUTING_ACCURACY = "validation.routing_accuracy"  # the metric that decides how many rows a router takes
_HASHED_ROWS = 5000  # between two heartbeats


@dataclass(frozen=True)
class RouterJob:
    """Everything that determines a router, and where it is saved.

    Attributes:
        base: The base.
        features: Features that the router reads.
        data: Prepared data of each task.
        feature_folders: Folder with the cached features of each task.
        lock: Spec hash of each task's expert.
        settings: Settings of the router.
        seed: Random seed.
        spec_hash: Hash of the router's spec.
        folder: Folder for the router's files.
        chunk_rows: Rows of features that are converted to full precision at a time.
    """

    base: Base
    features: FeatureSpec
    data: dict[str, PreparedTask]
    feature_folders: dict[str, str]
    lock: dict[str, str]
    settings: RouterSettings
    seed: int
    spec_hash: str
    folder: str
    chunk_rows: int = FEATURE_CHUNK

    def load(
        self,
        splits: str | tuple[str, ...],
        beat: Callable[[], Any] = no_beat,
        features: FeatureSpec | None = None,
        surface: Surface | None = None,
    ) -> Mixture:
        """Load the features of one or several splits of all tasks.

        Args:
            splits: Name of a split, or of several whose rows follow one another in each task.
            beat: Called for each task, and whenever a chunk of the rows is read.
            features: Replaces the router's own features.
            surface: Adds the vectors that it makes of the rows' texts.
        """
        rows = self._rows(splits)
        loaded = (
            load_features(Path(self.feature_folders[task]), split, count, features or self.features)
            for task, split, count in rows
        )
        counts = [sum(count for task, _, count in rows if task == each) for each in self.data]
        vectors = embed_all(surface, self._ngrams(rows, beat), beat) if surface else None
        return Mixture.from_tasks(loaded, counts, vectors, self.chunk_rows, beat)

    def fit_surface(self, beat: Callable[[], Any] = no_beat) -> Surface | None:
        """Train a surface on the training rows and on plain copies of them; None if the settings want none."""
        if self.settings.surface == "none":
            return None
        torch.manual_seed(self.seed)
        rows = [(task, form, count) for task, _, count in self._rows("train") for form in ("train", PLAIN)]
        places = {task: place for place, task in enumerate(self.data)}
        labels = torch.cat([torch.full((count,), places[task]) for task, _, count in rows])
        return fit_surface(len(places), self._ngrams(rows, beat), labels, beat)

    def _rows(self, splits: str | tuple[str, ...]) -> list[tuple[str, str, int]]:
        """Return task, split and number of rows of these splits, in the order in which a mixture has them."""
        names = (splits,) if isinstance(splits, str) else splits
        counts = {task: row_counts(data, self.settings.most_rows) for task, data in self.data.items()}
        return [(task, split, counts[task][split]) for task in self.data for split in names]

    def _ngrams(self, rows: list[tuple[str, str, int]], beat: Callable[[], Any]) -> Ngrams:
        def hashed() -> Iterator[Ngrams]:
            for task, split, count in rows:
                texts = [surface_text(to_input(example)) for example in load_form(self.data[task], split, count)]
                for start in range(0, len(texts), _HASHED_ROWS):
                    beat()
                    yield Ngrams.of(texts[start : start + _HASHED_ROWS])

        return Ngrams.join(hashed())


@dataclass(frozen=True)
class RouterResult:
    """The result of a router job.

    Attributes:
        tasks: Names of the tasks.
        metrics: Metrics of the router.
        confusion: Counts of validation rows; row i, column j counts rows of task i that were routed to task j.
        spec_hash: Hash of the router's spec.
        folder: Folder with the router's files.
    """

    tasks: tuple[str, ...]
    metrics: dict[str, float]
    confusion: list[list[int]]
    spec_hash: str
    folder: str


def run_router(job: RouterJob, *, threads: int, report: ProgressCallback) -> RouterResult:
    """Train the router, measure it on the validation splits and write it to the job's folder.

    Args:
        job: The job.
        threads: Number of CPU threads.
        report: Receives the progress: from the start, and within an epoch too.
    """
    torch.set_num_threads(threads)
    started, tasks = time.monotonic(), tuple(job.data)
    report = Heartbeat(report)
    report(Progress("loading", 0, job.settings.epochs))
    surface = job.fit_surface(report.beat)
    validation = job.load("validation", report.beat, surface=surface)
    router = build_router(job, job.features, validation, report, report.beat, surface)
    seconds = time.monotonic() - started
    report(Progress("testing", job.settings.epochs, job.settings.epochs))
    stripped = job.load(STRIPPED, report.beat, surface=router.surface)
    chosen = route_rows(router, validation)[1]
    metrics = {
        ROUTING_ACCURACY: float((chosen == validation.labels).float().mean()),
        "stripped.routing_accuracy": routing_accuracy(router, stripped),
        "seconds.training": seconds,
        "parameters": float(sum(p.numel() for p in router.parameters())),
    }
    save_router(router, Path(job.folder), job.base.record(), job.lock, metrics, job.settings.kind)
    places = validation.labels * len(tasks) + chosen
    confusion = torch.bincount(places, minlength=len(tasks) ** 2).view(len(tasks), -1).tolist()
    result = RouterResult(tasks, metrics, confusion, job.spec_hash, job.folder)
    Path(job.folder, ROUTER_RESULT_FILE).write_text(json.dumps(asdict(result), indent=1))
    return result


@dataclass
class Heartbeat:
    """A progress callback that can repeat its last report.

    Attributes:
        report: Receives the progress.
        last: The last report.
    """

    report: ProgressCallback
    last: Progress = field(default_factory=lambda: Progress("loading"))

    def __call__(self, progress: Progress) -> None:
        """Send a report."""
        self.last = replace(progress, metrics={})
        self.report(progress)

    def beat(self) -> None:
        """Repeat the last report, without its metrics: the job is alive."""
        self.report(self.last)


def build_router(
    job: RouterJob,
    features: FeatureSpec,
    validation: Mixture,
    report: ProgressCallback,
    beat: Callable[[], Any] = no_beat,
    surface: Surface | None = None,
) -> Router:
    """Train a router of the job on these features, with the job's seed; call ``beat`` between the reports.

    The validation rows have the vectors of ``surface``, if there is one.
    """
    torch.manual_seed(job.seed)
    loose = job.load(LOOSE, beat, features, surface) if job.settings.unknown and job.settings.loose else None
    train = job.load(("train", PLAIN), beat, features)
    return fit_router(tuple(job.data), train, validation, features, job.settings, report, loose, surface)


def route_rows(router: Router, rows: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """Route all rows.

    Returns:
        For each row the probability of the chosen expert, the expert's index, and whether the row is familiar.
    """
    probabilities, chosen, familiar = [], [], []
    index_of_task = {task: i for i, task in enumerate(router.tasks)}
    for part in rows.chunks():
        routes = router.route(*part)
        probabilities += routes.probabilities
        chosen += [index_of_task[name] for name in routes.names]
        familiar += routes.familiar
    return torch.tensor(probabilities), torch.tensor(chosen), torch.tensor(familiar)


def routing_accuracy(router: Router, rows: Mixture) -> float:
    """Return the fraction of rows that are routed to the expert of their own task."""
    return float((router.choose(rows.scores(router)) == rows.labels).float().mean())
