"""The worker process, a Ray actor that runs one unit at a time, and what it sends to the driver."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import ray

from orchestrator.pool.device_record import WorkerDevice
from orchestrator.pool.unit_runner import run_unit
from orchestrator.pool.work_units import WorkUnit
from workers.progress import Progress
from workers.stopping import stopped_by
from workers.system_metrics import SystemMetrics

REPORT_INTERVAL = 0.3  # seconds between two sends of a worker; reports in between are sent together


Report = tuple[str, float, Progress]
"""Key of the job, Unix time in seconds, progress."""


class _Reporter:
    """Progress callback that sends reports to the channel in batches without waiting for it."""

    def __init__(self, channel: Any, key: str, system: SystemMetrics) -> None:
        self.channel, self.key, self.system, self.last_sent = channel, key, system, 0.0
        self.pending: list[Report] = []
        self.sent: Any = None  # the last send

    def __call__(self, progress: Progress) -> None:
        if sample := self.system.sample():
            progress = replace(progress, metrics=progress.metrics | sample)
        self.pending.append((progress.key or self.key, time.time(), progress))
        if time.monotonic() - self.last_sent > REPORT_INTERVAL:
            self.flush()

    def flush(self) -> None:
        self.sent = self.channel.put.remote(self.pending)
        self.pending, self.last_sent = [], time.monotonic()

    def remaining(self) -> list[Report]:
        """Return the reports not sent yet, after the others have arrived at the channel."""
        if self.sent is not None:
            ray.wait([self.sent], timeout=10)  # a driver that is gone is not waited for
        return self.pending


@dataclass(frozen=True)
class UnitEnded:
    """Event of a unit that has ended.

    Attributes:
        outcomes: Result or Failure of each job of the unit.
        reports: Progress reports that follow those of the channel.
        broken: Whether the worker can run no other unit.
    """

    outcomes: dict[str, Any]
    reports: list[Report]
    broken: bool = False


@ray.remote(max_restarts=0)
class Worker:
    """Worker process; it runs one unit at a time. It may be a member of a group that runs each unit together."""

    def __init__(self) -> None:
        self.system = SystemMetrics()

    def device(self) -> WorkerDevice:
        """Return the device on which the process computes."""
        context = ray.get_runtime_context()
        gpus = tuple(sorted(context.get_accelerator_ids().get("GPU", ())))
        return WorkerDevice(context.get_node_id(), ray.util.get_node_ip_address(), gpus)

    def run(self, unit: WorkUnit, channel: Any) -> UnitEnded:
        """Run a unit; its reports go to the channel."""
        report = _Reporter(channel, next(iter(unit.jobs)), self.system)
        with stopped_by(ray.get_runtime_context().is_canceled):
            return UnitEnded(run_unit(unit, report), report.remaining())

    def meeting_address(self) -> str:
        """Return an address at which the members of this worker's group can meet."""
        from workers.training.engines.process_group import free_address

        return free_address(ray.util.get_node_ip_address())

    def join(self, address: str, rank: int, size: int) -> None:
        """Join a group; return when all its members have."""
        from workers.training.engines.process_group import join_group

        join_group(address, rank, size, ray.util.get_node_ip_address())

    def follow(self, unit: WorkUnit, rank: int) -> dict[str, Any]:
        """Run the share of a unit that is the member's of this rank, without reports, and return the outcomes."""
        log = unit.log.with_name(f"{unit.log.stem}.rank{rank}{unit.log.suffix}")
        with stopped_by(ray.get_runtime_context().is_canceled):
            return run_unit(replace(unit, log=log), lambda progress: None)

    def wait(self) -> None:
        """Keep the resources reserved until the process is killed."""
        while True:
            time.sleep(3600)
