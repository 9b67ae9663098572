"""How many jobs fit on the nodes of a cluster, and which resource limits their number."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import humanize

from ttmoe.errors import InfeasibleError
from workers.hardware import Hardware

GB = 10**9
ADD_A_NODE = "reserve less, or add a node with these resources (with resources.autoscaling the run waits for one)"


@dataclass(frozen=True)
class JobResources:
    """Resources that one job reserves.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs; a number below 1 is a share of one GPU.
        memory: Main memory in bytes.
        accelerator_type: Ray's name of the type of GPU that the job needs, such as ``H100``; None for any.
        labels: Labels, as pairs of key and value, that the node must have.
        processes: Processes that run the job together. Each reserves what is said above, on any node.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    accelerator_type: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    processes: int = 1


@dataclass(frozen=True)
class Node:
    """Total resources of one machine.

    Attributes:
        name: Address or name, for messages.
        cpus: CPU cores.
        gpus: Number of GPUs.
        memory: Main memory in bytes.
        gpu_memory: Bytes of memory of the smallest GPU; 0 if unknown.
        id: Ray's id of the node.
        accelerators: Ray's names of the types of its GPUs.
        labels: Its labels as pairs of key and value.
        hardware: What a probe on the node found; None before it.
        tflops: Stated throughput of each of its GPUs, in 10^12 operations per second; 0 if none is stated.
    """

    name: str
    cpus: float
    gpus: float
    memory: int
    gpu_memory: int = 0
    id: str = ""
    accelerators: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    hardware: Hardware | None = None
    tflops: float = 0.0

    def suits(self, job: JobResources) -> bool:
        """Return whether the node has the type of GPU and the labels that the job asks for."""
        accelerator = job.accelerator_type is None or job.accelerator_type in self.accelerators
        return accelerator and set(job.labels) <= set(self.labels)


def serves(reserved: JobResources, required: JobResources, *, alone: bool) -> bool:
    """Return whether a worker with these reserved resources may run jobs that require others.

    Forecasts of memory are not exact: a tenth less is no reason to start another process.

    A job that runs alone may run in any worker with enough memory and GPUs: the cores of the others are idle. Otherwise
    each worker has exactly the cores of a job: with more of them it would take those of a second worker.
    """
    enough = reserved.memory >= 0.9 * required.memory and reserved.gpus >= required.gpus
    return enough and reserved.processes == required.processes and (alone or reserved.cpus == required.cpus)


def jobs_on_node(node: Node, job: JobResources) -> int:
    """Return how many processes of such jobs run on the node at the same time."""
    return int(min(sys.maxsize, *_jobs_by_resource(node, job).values())) if node.suits(job) else 0


def max_parallel_jobs(nodes: Sequence[Node], job: JobResources, limit: int | None = None) -> int:
    """Return how many such jobs run on all nodes at the same time, at most ``limit``."""
    count = sum(jobs_on_node(node, job) for node in nodes) // job.processes
    return count if limit is None else min(count, limit)


def limiting_resource(nodes: Sequence[Node], job: JobResources) -> str:
    """Return the resource that is used up first: ``CPU``, ``GPU`` or ``memory``; ``nodes`` if none suits the job."""
    totals: dict[str, float] = {}
    for node in nodes:
        for name, count in _jobs_by_resource(node, job).items() if node.suits(job) else ():
            totals[name] = totals.get(name, 0) + count
    return min(totals, key=lambda name: totals[name], default="nodes")


def require_fits(nodes: Sequence[Node], job: JobResources, what: str, fix: str = ADD_A_NODE) -> None:
    """Check that at least one node can run the job.

    Args:
        nodes: Nodes of the cluster.
        job: Resources of the job.
        what: Name of the job in the error message, such as ``an expert``.
        fix: Advice in the error message.

    Raises:
        InfeasibleError: If no node has the resources, or all nodes together have no room for all its processes.
    """
    processes = sum(jobs_on_node(node, job) for node in nodes)
    if processes >= job.processes:
        return
    if processes:
        what_is_there = f"the cluster has room for {processes} of its {job.processes} processes"
        one = replace(job, processes=1)
        raise InfeasibleError(
            f"each process of {what} requires {_as_text(one)}, and {what_is_there}", where="resources", fix=fix
        )
    suitable = [node for node in nodes if node.suits(job)]
    if nodes and not suitable:
        names = sorted({name for node in nodes for name in node.accelerators})
        has = f"the types of GPU in the cluster are: {', '.join(names) or 'none'}"
        raise InfeasibleError(f"{what} requires {_as_text(job)}, which no node has", where="resources", fix=has)
    nodes = suitable
    best = max(nodes, key=lambda node: (node.gpus, node.memory, node.cpus), default=None)
    largest = (
        f"the largest node has {_as_text(JobResources(best.cpus, best.gpus, best.memory))}"
        if best
        else "the cluster has no nodes"
    )
    raise InfeasibleError(f"{what} requires {_as_text(job)}, and {largest}", where="resources", fix=fix)


def _jobs_by_resource(node: Node, job: JobResources) -> dict[str, float]:
    return {
        "CPU": _count(node.cpus, job.cpus),
        "memory": _count(node.memory, job.memory),
        "GPU": _count_by_gpus(node.gpus, job.gpus),
    }


def _count(available: float, required: float) -> float:
    # The tolerance covers rounding: three jobs with a third of a core each fit on one core.
    return math.floor(available / required + 1e-9) if required else math.inf


def _count_by_gpus(available: float, required: float) -> float:
    """Count jobs by GPUs; a share must fit on one GPU, the remainders of two GPUs do not add up."""
    if not required:
        return math.inf
    if required < 1:
        return math.floor(available) * math.floor(1 / required + 1e-9)
    return math.floor(available / required)


def _as_text(job: JobResources) -> str:
    processors = [f"{job.cpus:g} CPUs", f"{job.gpus:g} GPUs"] if job.cpus or job.gpus else []
    memory = [f"{humanize.naturalsize(job.memory)} of memory"] if job.memory else []
    accelerator = [f"accelerator type {job.accelerator_type}"] if job.accelerator_type else []
    labels = [f"label {key}={value}" for key, value in job.labels]
    return ", ".join(processors + memory + accelerator + labels)
