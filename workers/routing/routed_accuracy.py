"""Test of the routed model on one task's test split, without the task's name."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ttmoe.base import Base
from ttmoe.batching import BATCH_ROWS
from ttmoe.generating_kinds import GENERATING_KINDS
from ttmoe.prediction import Prediction
from ttmoe.routed import RoutedModel
from ttmoe.router import ROUTER_MANIFEST
from workers.base.base_sources import base_on_this_node
from workers.base.resident import load_resident_base, release_resident_base
from workers.data.examples import Example
from workers.data.prepared import PreparedTask, load_split
from workers.progress import Progress, ProgressCallback
from workers.training.batches import to_input
from workers.training.settings import ONE_PROCESS, TrainSettings

_MOST_EXAMPLES = 50
_REPORTED_ROWS = 256  # rows between two reports


@functools.lru_cache(maxsize=1)
def load_routed_model(
    folder: Path, router: str, base: Base, device: str, train: TrainSettings = ONE_PROCESS
) -> RoutedModel:
    """Load the routed model of a folder and keep it in the process for the next task.

    Args:
        folder: Folder of the model.
        router: Text of the router's manifest, so that a changed router is loaded again.
        base: The base.
        device: Device of the model.
        train: Training settings that name the engine; by default that of one process.
    """
    if train.shards_base:  # all processes answer the same rows, in the same passes
        bank = load_resident_base(base, device, train).bank
        for name in list(bank.experts):
            bank.remove(name)
        return RoutedModel.load(folder, base_on_this_node(base), device, bank)
    release_resident_base()  # the routed model loads a base of its own
    return RoutedModel.load(folder, base_on_this_node(base), device)


@dataclass(frozen=True)
class RoutedAccuracy:
    """Counts of one task's test rows.

    Attributes:
        task: Name of the task.
        rows: Test rows.
        routed_right: Rows that were routed to the task's own expert.
        answered_right: Of these, rows with the right answer.
        known_right: Rows with the right answer of ``predict``, which calls rows that resemble no task ``unknown``; in a
            group of tasks any of its experts may be the row's.
        unknown: Rows that ``predict`` calls ``unknown``.
        routed: Rows that were routed to each task.
        harmless: By another expert, the rows that it answered with the name of the right label.
        overconfidence: For each bin of the router's probability, see ``overconfidence``, the sum of
            that probability over rows, minus the rows among them that were routed to their own expert or its group.
        right_rows: Indices of the first test rows with the right answer, as examples.
        alone_right: Rows with the right answer of the task's own expert, without routing; None if not measured.
        labelled: Whether the right answers are known. Otherwise only routes and ``unknown`` are counted.
    """

    task: str
    rows: int
    routed_right: int
    answered_right: int
    known_right: int = 0
    unknown: int = 0
    routed: dict[str, int] = field(default_factory=dict)
    harmless: dict[str, int] = field(default_factory=dict)
    overconfidence: tuple[float, ...] = ()
    right_rows: tuple[int, ...] = ()
    alone_right: int | None = None
    labelled: bool = True

    def right_in(self, group: Collection[str]) -> int:
        """Return the rows with the right answer, whichever expert of a group gave it; the task itself is of it."""
        return self.answered_right + sum(right for task, right in self.harmless.items() if task in group)


def answer_test_split(
    folder: Path,
    base: Base,
    data: PreparedTask,
    *,
    threads: int,
    device: str,
    report: ProgressCallback,
    batch_rows: int = BATCH_ROWS,
    alone: bool = False,
    train: TrainSettings = ONE_PROCESS,
) -> RoutedAccuracy:
    """Predict a task's test split with the routed model and count right routes and answers.

    Every row is answered, those that resemble no task too. In a group of tasks the answer is that of the group, and the
    row's expert is the one with the largest share.

    Args:
        folder: Folder of the router and its experts.
        base: The base.
        data: The task's prepared data.
        threads: Number of CPU threads.
        device: Device of the model.
        report: Receives the progress.
        batch_rows: Maximum rows in a batch.
        alone: Let the task's own expert answer the rows too, without routing.
        train: Training settings that name the engine; by default that of one process.
    """
    torch.set_num_threads(threads)
    examples = load_split(data, "test")
    report(Progress("loading", 0, len(examples)))
    model = load_routed_model(folder, (folder / ROUTER_MANIFEST).read_text(), base, device, train)
    predictions, alone_right = list[Prediction](), 0
    for start in range(0, len(examples), _REPORTED_ROWS):
        part = examples[start : start + _REPORTED_ROWS]
        inputs = [to_input(e) for e in part]
        predictions += model.predict(inputs, batch_rows, unknown=False)
        if alone and data.labelled:
            own = model.predict(inputs, batch_rows, expert=data.name)
            alone_right += sum(p.label == _right_label(data, e) for p, e in zip(own, part, strict=True))
        report(Progress("routed test", len(predictions), len(examples)))
    group = {data.name}.union(*(group for group in model.router.groups if data.name in group))
    routed = [prediction.task == data.name for prediction in predictions]
    answered = [data.labelled and p.label == _right_label(data, e) for p, e in zip(predictions, examples, strict=True)]
    right = [index for index in range(len(examples)) if routed[index] and answered[index]]
    misrouted = (p.task for p, own, is_right in zip(predictions, routed, answered, strict=True) if is_right and not own)
    return RoutedAccuracy(
        data.name,
        len(examples),
        sum(routed),
        len(right),
        sum(p.familiar and p.task in group and is_right for p, is_right in zip(predictions, answered, strict=True)),
        sum(not prediction.familiar for prediction in predictions),
        dict(Counter(prediction.task for prediction in predictions)),
        dict(Counter(misrouted)),
        overconfidence([p.routing for p in predictions], [p.task in group for p in predictions]),
        tuple(right[:_MOST_EXAMPLES]),
        alone_right if alone and data.labelled else None,
        data.labelled,
    )


def calibration_error(tests: Iterable[RoutedAccuracy]) -> float:
    """Return the router's expected calibration error on the rows of all tasks (Guo et al., 2017, equation 3).

    |bin| / rows * |mean probability - accuracy| of a bin is |sum of (probability - right)| / rows.
    """
    tests = list(tests)
    bins = zip(*(test.overconfidence for test in tests), strict=True)
    return sum(abs(sum(values)) for values in bins) / sum(test.rows for test in tests)


def overconfidence(probabilities: Sequence[float], right: Sequence[bool], bins: int = 15) -> tuple[float, ...]:
    """Sum probability minus correctness over rows, by bin of the probability; bins have equal width."""
    sums = [0.0] * bins
    for probability, is_right in zip(probabilities, right, strict=True):
        sums[min(int(probability * bins), bins - 1)] += probability - is_right
    return tuple(sums)


def _right_label(data: PreparedTask, example: Example) -> str:
    if data.kind in GENERATING_KINDS:
        return example.answer
    return str(example.label) if data.kind == "choice" else data.label_names[example.label]
