"""The worker processes of a driver, wherever in the cluster they run, and their end."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import psutil

from cluster.attaching import cluster_address


@dataclass(frozen=True)
class WorkerProcess:
    """A process in which an actor of a driver runs.

    Attributes:
        pid: Its process id on its node.
        node: Ray's id of the node; empty for this machine.
        place: Address of the node, for messages.
    """

    pid: int
    node: str = ""
    place: str = "this machine"


def worker_processes(driver: int, actor: str) -> list[WorkerProcess]:
    """Return the processes of a driver's actors. On the cluster of RAY_ADDRESS, call it inside a ``ray_session``.

    Args:
        driver: Process id of the driver, on this machine.
        actor: Name of the actors' class.
    """
    if cluster_address() is None:
        return [WorkerProcess(each.pid) for each in _descendants(driver) if _title(each).startswith(f"ray::{actor}")]
    import ray
    from ray._private.state import actors, jobs

    own = ray.util.get_node_ip_address()
    mine = {job["JobID"] for job in jobs() if (job["DriverPid"], job["DriverIPAddress"]) == (driver, own)}
    return [
        WorkerProcess(each["Pid"], each["Address"]["NodeID"], each["Address"]["IPAddress"])
        for each in actors().values()
        if each["JobID"] in mine and each["ActorClassName"] == actor and each["State"] == "ALIVE"
    ]


def kill_process(process: WorkerProcess) -> None:
    """Kill a process, as the system does that runs out of memory. A task on its node does it; it may have ended."""
    if not process.node:
        _kill(process.pid)
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(process.node, soft=False)
    ray.get(ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=there).remote(process.pid))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _descendants(driver: int) -> list[psutil.Process]:
    try:
        return psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    """Return the command line, which Ray sets to what the process does."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
