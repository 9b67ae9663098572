"""Worker processes on Ray, and the board where they leave their progress: all that the crew needs of Ray."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.pool.capacity import JobResources, Node
from orchestrator.pool.work_units import WorkUnit
from workers.failure import Failure, to_failure
from workers.progress import Progress

REPORT_INTERVAL = 0.3  # seconds; a worker that reports more often is heard less often


@ray.remote(num_cpus=0)
class _ProgressChannel:
    """Progress on its way from the workers to the driver."""

    def __init__(self) -> None:
        self.news: list[tuple[str, float, Progress]] = []

    def put(self, reports: list[tuple[str, float, Progress]]) -> None:
        self.news += reports

    def take(self) -> list[tuple[str, float, Progress]]:
        """All that came since the last call."""
        news, self.news = self.news, []
        return news


class _Reporter:
    """Sends reports to the board in bundles, not waiting for it."""

    def __init__(self, board: Any, key: str) -> None:
        self.board, self.key, self.sent = board, key, 0.0
        self.waiting: list[tuple[str, float, Progress]] = []

    def __call__(self, progress: Progress) -> None:
        self.waiting.append((progress.key or self.key, time.time(), progress))
        if time.monotonic() - self.sent > REPORT_INTERVAL:
            self.flush()

    def flush(self) -> Any:
        sent = self.board.put.remote(self.waiting)
        self.waiting, self.sent = [], time.monotonic()
        return sent


@ray.remote(max_restarts=0)
class _Worker:
    """One process: it runs a unit at a time."""

    def where(self) -> str:
        """The node it is on."""
        return ray.get_runtime_context().get_node_id()

    def run(self, unit: WorkUnit, board: Any) -> dict[str, Any]:
        """What came of each of the unit's jobs."""
        report = _Reporter(board, next(iter(unit.jobs)))
        try:
            unit.log.parent.mkdir(parents=True, exist_ok=True)
            with _log_to(unit.log):
                return _outcome(unit, report)
        except OSError as error:  # the log cannot be written
            return dict.fromkeys(unit.jobs, to_failure(error))
        finally:
            # The end must not overtake the last reports; where nobody listens any more, it does not matter.
            ray.wait([report.flush()], timeout=10)


def _outcome(unit: WorkUnit, report: Any) -> dict[str, Any]:
    try:
        return unit.run(unit.jobs, report=report)
    except Exception as error:
        traceback.print_exc()
        return dict.fromkeys(unit.jobs, to_failure(error))


class _log_to:
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


@dataclass(frozen=True)
class WorkerStarted:
    """A process is up, on this node."""

    node: str


@dataclass
class WorkerHandle:
    """A worker process as the driver sees it. ``node`` is known once it is up; ``heard`` is on the monotonic clock."""

    actor: Any
    ref: Any
    node: str | None = None
    unit: WorkUnit | None = None
    heard: float = 0.0

    def begin(self, unit: WorkUnit, board: Any) -> None:
        """Give it a unit."""
        self.unit, self.heard = unit, time.monotonic()
        self.ref = self.actor.run.remote(unit, board)

    def end(self) -> WorkUnit:
        """Take the unit from it."""
        unit, self.unit, self.ref = self.unit, None, None
        assert unit is not None
        return unit


def start_worker(need: JobResources) -> WorkerHandle:
    """Ask Ray for one more process; it comes up when there is room."""
    memory = {"memory": need.memory} if need.memory else {}
    actor = _Worker.options(num_cpus=need.cpus, num_gpus=need.gpus, **memory).remote()  # type: ignore[attr-defined]
    return WorkerHandle(actor, actor.where.remote())


def wait_for_events(slots: Sequence[WorkerHandle], seconds: float) -> Iterator[tuple[WorkerHandle, Any]]:
    """Slots of which something is known now: Started, the outcomes of a unit, or an error of Ray's."""
    by_ref = {slot.ref: slot for slot in slots if slot.ref is not None}
    if not by_ref:
        time.sleep(seconds)
        return
    first, others = ray.wait(list(by_ref), num_returns=1, timeout=seconds)
    more = ray.wait(others, num_returns=len(others), timeout=0)[0] if first and others else []
    for ref in first + more:
        slot = by_ref[ref]
        try:
            value = ray.get(ref)
        except ray.exceptions.RayError as error:
            yield slot, error
            continue
        if slot.node is None:
            slot.ref = None
            value = WorkerStarted(value)
        yield slot, value


def failure_from_ray(error: BaseException, node: str | None) -> Failure:
    """The failure that an error of Ray's stands for; ``node`` is where the process was."""
    text = str(error).strip().splitlines()
    message = text[-1] if text else ""
    if isinstance(error, ray.exceptions.RayTaskError):  # its result could not travel
        return Failure("code", type(error).__name__, str(error), str(error))
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return Failure("memory", "OutOfMemoryError", message, str(error))
    gone = isinstance(error, ray.exceptions.NodeDiedError) or getattr(error, "preempted", False)
    if gone or not _answers(node):
        return Failure("lost", "NodeLost", f"node {(node or '')[:8]} left the cluster", str(error))
    return Failure("died", type(error).__name__, message, str(error))


def _answers(node: str | None) -> bool:
    """Whether a node is there. Ray itself misses a node only seconds after its processes, so the node is asked."""
    for each in ray.nodes():
        if each["NodeID"] == node and each["Alive"]:
            try:
                socket.create_connection((each["NodeManagerAddress"], each["NodeManagerPort"]), timeout=2).close()
            except OSError:
                return False
            return True
    return False


def create_progress_channel() -> Any:
    """A board, on the driver's own node: it must outlive all others."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return _ProgressChannel.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


def drain_progress(board: Any) -> list[tuple[str, float, Progress]]:
    """All that the workers reported since the last call: key, when, what."""
    return ray.get(board.take.remote())


def kill_actor(actor: Any) -> None:
    """End a process at once."""
    ray.kill(actor)


def cluster_nodes() -> list[Node]:
    """The nodes that are alive, with what each has in all."""
    return [
        Node(
            each["NodeManagerAddress"],
            each["Resources"].get("CPU", 0.0),
            each["Resources"].get("GPU", 0.0),
            int(each["Resources"].get("memory", 0)),
        )
        for each in ray.nodes()
        if each["Alive"]
    ]
