"""Inputs that are rows of several tasks: the router cannot tell by such an input which task is meant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workers.data.examples import Example


@dataclass(frozen=True)
class SharedInputs:
    """Inputs that two tasks have in common.

    Attributes:
        tasks: The two tasks.
        count: Number of different inputs, of which case and white space are ignored.
        sample: One of them.
    """

    tasks: tuple[str, str]
    count: int
    sample: str


def find_shared_inputs(examples: Mapping[str, Sequence[Example]]) -> list[SharedInputs]:
    """Return the inputs that each two tasks share, the largest number first.

    Args:
        examples: The rows of all splits by task.
    """
    tasks_of: dict[str, list[str]] = defaultdict(list)
    for task, rows in examples.items():
        for key in {example.key for example in rows}:
            tasks_of[key].append(task)
    counts = Counter[tuple[str, str]]()
    samples: dict[tuple[str, str], str] = {}
    for key, tasks in tasks_of.items():
        for i, first in enumerate(tasks):
            for second in tasks[i + 1 :]:
                counts[first, second] += 1
                samples[first, second] = min(key, samples.get((first, second), key))
    return [SharedInputs(pair, n, samples[pair].replace("\x1f", " | ")) for pair, n in counts.most_common()]
