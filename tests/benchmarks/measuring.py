"""Interleaved timing: the machine is noisy and shared, so only what ran side by side is compared."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

QUICK = "TTMOE_BENCHMARKS_QUICK"
"""Set in the environment: a tenth of the time and two rounds, to try the code out."""
BUSY = "TTMOE_BENCHMARKS_BUSY"
"""Set in the environment: one thread, and its CPU time; for a machine whose cores are wanted by others too."""


def clock() -> float:
    """Seconds: of the wall, or those that this process was given."""
    return time.process_time() if os.environ.get(BUSY) else time.perf_counter()


@dataclass(frozen=True)
class Times:
    """Seconds of each subject, round by round: round i of one stands beside round i of every other."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, to: str) -> list[float]:
        return [a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True)]

    def ratio(self, name: str, to: str) -> float:
        """The median over rounds of the ratio within a round: a slow minute slows both of its sides."""
        return statistics.median(self.ratios(name, to))

    def spread(self, name: str, to: str) -> str:
        """The quartiles of that ratio."""
        low, _, high = statistics.quantiles(self.ratios(name, to), n=4, method="inclusive")
        return f"quartiles {low:.2f} to {high:.2f} of {len(self.seconds[name])} rounds"


def interleave(
    subjects: Mapping[str, Callable[[], object]], *, seconds: float, rounds: tuple[int, int] = (5, 60), warm: int = 1
) -> Times:
    """Run the subjects in turn, every other round backwards, for about ``seconds`` but within ``rounds``."""
    if os.environ.get(QUICK):
        seconds, rounds, warm = seconds / 10, (2, rounds[1]), 1
    for _ in range(warm):
        for run in subjects.values():
            run()
    found: dict[str, list[float]] = {name: [] for name in subjects}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        for i in range(rounds[1]):
            if i >= rounds[0] and time.perf_counter() > end:
                break
            for name in list(subjects) if i % 2 == 0 else list(reversed(subjects)):
                found[name].append(_timed(subjects[name]))
    finally:
        gc.enable()
    return Times(found)


def _timed(run: Callable[[], object]) -> float:
    began = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def duration(seconds: float) -> str:
    """Three digits, in s or ms."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
