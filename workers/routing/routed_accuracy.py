"""The routed model on a task's test rows, with no task name given."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from ttmoe.base import Base
from ttmoe.routed import RoutedModel
from ttmoe.router import ROUTER_MANIFEST
from workers.base.resident import release_resident_base
from workers.data.examples import Example
from workers.data.prepared import PreparedTask, load_split
from workers.progress import Progress, ProgressCallback
from workers.training.batches import to_input


@functools.lru_cache(maxsize=1)
def load_routed_model(folder: Path, router: str, base: Base, device: str) -> RoutedModel:
    """The routed model in ``folder``, which the process keeps for its next task. ``router`` is its manifest's text."""
    release_resident_base()  # it has a base of its own
    return RoutedModel.load(folder, base, device)


@dataclass(frozen=True)
class RoutedAccuracy:
    """Of ``rows`` test rows of a task: how many met their own expert, and how many got the right answer from it.

    ``harmless`` are those that another expert answered, with the right label's name all the same.
    """

    task: str
    rows: int
    routed_right: int
    answered_right: int
    harmless: int = 0


def answer_test_split(
    folder: Path, base: Base, data: PreparedTask, *, threads: int, device: str, report: ProgressCallback
) -> RoutedAccuracy:
    """Answer the task's whole test split through the router in ``folder`` and its experts; none is ``unknown`` here.

    An answer is right only if it comes from this task's expert: another expert's is another question's answer.
    """
    torch.set_num_threads(threads)
    model = load_routed_model(folder, (folder / ROUTER_MANIFEST).read_text(), base, device)
    examples = load_split(data, "test")
    own, right = [], []
    for start in range(0, len(examples), 256):
        part = examples[start : start + 256]
        for answer, example in zip(model.predict([to_input(e) for e in part], unknown=False), part, strict=True):
            own.append(answer.task == data.name)
            right.append(answer.label == _wanted(data, example))
        report(Progress("routed test", len(own), len(examples)))
    both = sum(mine and good for mine, good in zip(own, right, strict=True))
    return RoutedAccuracy(data.name, len(examples), sum(own), both, sum(right) - both)


def _wanted(data: PreparedTask, example: Example) -> str:
    """What the right answer is called."""
    if data.kind == "generate":
        return example.answer
    return str(example.label) if data.kind == "choice" else data.label_names[example.label]
