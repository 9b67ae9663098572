"""The command that works on a library now, from the lease that it holds, and its text in ``ttmoe status``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.plan.quantities import format_duration
from orchestrator.registry import Registry
from orchestrator.registry.process_identity import presence


@dataclass(frozen=True)
class DriverStatus:
    """The command that works on a library.

    Attributes:
        command: The command.
        host: Name of its host.
        process: Its process id.
        since: When it began.
        seen: Its last sign of life.
        is_here: Whether it runs on this machine, outside other containers; otherwise it may have been lost.
    """

    command: str
    host: str
    process: int
    since: datetime
    seen: datetime
    is_here: bool


def read_driver(registry: Registry, library: str) -> DriverStatus | None:
    """Return the command that works on a library; None if there is none, or its process is gone."""
    claim = registry.lease_holder(library)
    if claim is None or (found := presence(claim.holder)) == "gone":
        return None
    since, seen = (datetime.fromtimestamp(each, UTC) for each in (claim.since, claim.seen))
    return DriverStatus(claim.command, claim.holder.host, claim.holder.process, since, seen, is_here=found == "running")


def format_driver(driver: DriverStatus | None, now: datetime, command: str = "") -> str:
    """Return as text which command works on a run or a search that MLflow reports as RUNNING.

    Args:
        driver: The command; None if there is none.
        now: Time up to which ages are counted.
        command: The command that continues the work; empty if it is one of several.
    """
    if driver is None:
        same = f"the same `{command}`" if command else "the same command"
        return f"MLflow reports RUNNING, but its driver has ended: {same} continues it"
    name = "its driver" if driver.command == command else f"`{driver.command}`"
    where = "this machine" if driver.is_here else driver.host
    text = f"{name} runs on {where} (process {driver.process}), since {driver.since.astimezone():%Y-%m-%d %H:%M:%S}"
    if driver.is_here:
        return text
    return f"{text},\n  last sign of life {format_duration((now - driver.seen).total_seconds())} ago"


def format_period(began: datetime, ended: datetime | None, now: datetime) -> str:
    """Return as text when a run or a search started, and how long it took or how long ago that is."""
    start = f"started {began.astimezone():%Y-%m-%d %H:%M:%S}"
    if ended:
        return f"{start}, took {format_duration((ended - began).total_seconds())}"
    return f"{start}, {format_duration((now - began).total_seconds())} ago"
