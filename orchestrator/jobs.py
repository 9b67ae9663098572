"""Ray units: functions that run elsewhere, each with its own log, and the board where they leave their progress."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster.local  # noqa: F401

# isort: split
# Ray reads its settings from the environment when it is imported, so it comes after them.
import ray

from workers.progress import Progress

LOG = "log.txt"
BETWEEN_REPORTS = 0.3  # seconds; a worker that reports more often is heard less often


@dataclass(frozen=True)
class Unit:
    """One piece of work: ``run(*args, report=...)`` in a process of its own, with what it reserves."""

    key: str
    run: Callable[..., Any]
    args: tuple
    folder: Path
    cpus: float = 1
    gpus: float = 0
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class News:
    """What was heard of a unit: progress, its result, or how it failed."""

    key: str
    progress: tuple[tuple[float, Progress], ...] = ()
    result: Any = None
    error: Exception | None = None
    done: bool = False


@ray.remote(num_cpus=0)
class Board:
    """Progress on its way from the workers to the driver."""

    def __init__(self) -> None:
        self.news: list[tuple[str, float, Progress]] = []

    def put(self, key: str, reports: list[tuple[float, Progress]]) -> None:
        """Take reports of one unit."""
        self.news += [(key, when, progress) for when, progress in reports]

    def take(self) -> list[tuple[str, float, Progress]]:
        """All that came since the last call."""
        news, self.news = self.news, []
        return news


class _Reporter:
    """Sends reports to the board in bundles, not waiting for it."""

    def __init__(self, board: Any, key: str) -> None:
        self.board, self.key, self.sent = board, key, 0.0
        self.waiting: list[tuple[float, Progress]] = []

    def __call__(self, progress: Progress) -> None:
        self.waiting.append((time.time(), progress))
        if time.monotonic() - self.sent > BETWEEN_REPORTS:
            self.flush()

    def flush(self) -> Any:
        sent = self.board.put.remote(self.key, self.waiting)
        self.waiting, self.sent = [], time.monotonic()
        return sent


@ray.remote(max_retries=0)
def _run(unit: Unit, board: Any) -> Any:
    report = _Reporter(board, unit.key)
    unit.folder.mkdir(parents=True, exist_ok=True)
    with _logged(unit.folder / LOG):
        try:
            return unit.run(*unit.args, report=report, **dict(unit.options))
        except Exception:
            traceback.print_exc()
            raise
        finally:
            # The end must not overtake the last reports; where nobody listens any more, it does not matter.
            ray.wait([report.flush()], timeout=10)


class _logged:
    """Everything this process prints goes to one file while inside: C libraries included."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.kept = os.dup(1), os.dup(2)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), self.kept, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def run_units(units: list[Unit], *, at_once: int | None = None, every: float = 0.25) -> Iterator[News | None]:
    """Run all units; yields their news, and None when there is none yet.

    As many run at a time as Ray has room for, and no more than ``at_once``. A unit that fails does not disturb
    the others: its news carries the error.
    """
    board = Board.remote()  # type: ignore[attr-defined]
    waiting = list(reversed(units))
    refs: dict[Any, Unit] = {}
    try:
        while waiting or refs:
            while waiting and len(refs) < (at_once or len(units)):
                unit = waiting.pop()
                refs[_run.options(num_cpus=unit.cpus, num_gpus=unit.gpus, name=unit.key).remote(unit, board)] = unit
            ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=every)
            yield from _heard(ray.get(board.take.remote()))
            for ref in ready:
                yield _outcome(refs.pop(ref).key, ref)
            if not ready:
                yield None
        yield from _heard(ray.get(board.take.remote()))
    finally:
        for ref in refs:
            ray.cancel(ref, force=True)
        ray.kill(board)


def _heard(news: list[tuple[str, float, Progress]]) -> Iterator[News]:
    for key in dict.fromkeys(key for key, _, _ in news):
        yield News(key, tuple((when, progress) for other, when, progress in news if other == key))


def _outcome(key: str, ref: Any) -> News:
    try:
        return News(key, result=ray.get(ref), done=True)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        return News(key, error=cause if isinstance(cause, Exception) else error, done=True)
    except ray.exceptions.RayError as error:
        return News(key, error=error, done=True)
