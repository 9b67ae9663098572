"""The routed model on a task's test rows, with no task name given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ttmoe.base import Base
from ttmoe.routed import RoutedModel
from workers.batches import as_input
from workers.prepared import Prepared, load_split
from workers.progress import Progress, Report


@dataclass(frozen=True)
class RoutedTest:
    """Of ``rows`` test rows of a task: how many met their own expert, and how many got the right answer."""

    task: str
    rows: int
    routed_right: int
    answered_right: int


def answer_test_split(
    folder: Path, base: Base, data: Prepared, *, threads: int, device: str, report: Report
) -> RoutedTest:
    """Answer the task's whole test split through the router in ``folder`` and its experts.

    An answer counts only if it comes from this task's labels: another expert's label is another question's answer.
    """
    torch.set_num_threads(threads)
    model, examples = RoutedModel.load(folder, base, device), load_split(data, "test")
    answers = []
    for start in range(0, len(examples), 256):
        answers += model.predict([as_input(example) for example in examples[start : start + 256]])
        report(Progress("routed test", len(answers), len(examples)))
    names = [str(i) for i in range(1000)] if data.kind == "choice" else data.label_names
    own = [answer.task == data.name for answer in answers]
    right = [
        mine and answer.label == names[example.label]
        for mine, answer, example in zip(own, answers, examples, strict=True)
    ]
    return RoutedTest(data.name, len(examples), sum(own), sum(right))
