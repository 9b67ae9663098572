"""How many jobs fit on the machines there are, and which resource says so."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ttmoe.errors import InfeasibleError

GB = 10**9


@dataclass(frozen=True)
class JobResources:
    """What one job reserves: processor cores, GPUs (a share below one is a share of one GPU), bytes of memory."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Node:
    """What one machine has in all; ``gpu_memory`` is the bytes of each of its GPUs, 0 where they are not known."""

    name: str
    cpus: float
    gpus: float
    memory: int
    gpu_memory: int = 0


def jobs_on_node(node: Node, need: JobResources) -> int:
    """How many such jobs the node holds at a time."""
    return int(min(sys.maxsize, *_places_by(node, need).values()))


def max_parallel_jobs(nodes: Sequence[Node], need: JobResources, at_most: int | None = None) -> int:
    """How many such jobs run at a time on all nodes, and not more than ``at_most``."""
    room = sum(jobs_on_node(node, need) for node in nodes)
    return room if at_most is None else min(room, at_most)


def limiting_resource(nodes: Sequence[Node], need: JobResources) -> str:
    """The resource that runs out first: ``CPU``, ``GPU`` or ``memory``."""
    totals: dict[str, float] = {}
    for node in nodes:
        for name, count in _places_by(node, need).items():
            totals[name] = totals.get(name, 0) + count
    return min(totals, key=lambda name: totals[name])


ADD_A_NODE = "ask for less, or add such a node (resources.autoscaling waits for one)"


def require_fits(nodes: Sequence[Node], need: JobResources, what: str, fix: str = ADD_A_NODE) -> None:
    """Raise InfeasibleError where no node holds one such job."""
    if any(jobs_on_node(node, need) for node in nodes):
        return
    best = max(nodes, key=lambda node: (node.gpus, node.memory, node.cpus), default=None)
    has = (
        f"the largest node has {_shown(JobResources(best.cpus, best.gpus, best.memory))}"
        if best
        else "there are no nodes"
    )
    raise InfeasibleError(
        f"{what} asks for {_shown(need)}, and {has}",
        where="resources",
        fix=fix,
    )


def _places_by(node: Node, need: JobResources) -> dict[str, float]:
    rooms = {"CPU": _room(node.cpus, need.cpus), "memory": _room(node.memory, need.memory)}
    return rooms | {"GPU": _gpu_places(node.gpus, need.gpus)}


def _room(has: float, wants: float) -> float:
    # A hair more than there is still fits: three times a third is one.
    return math.floor(has / wants + 1e-9) if wants else math.inf


def _gpu_places(has: float, wants: float) -> float:
    """A share of a GPU lies on one GPU; what a GPU has left over joins no other's."""
    if not wants:
        return math.inf
    return math.floor(has) * math.floor(1 / wants + 1e-9) if wants < 1 else math.floor(has / wants)


def _shown(need: JobResources) -> str:
    processors = [f"{need.cpus:g} CPUs", f"{need.gpus:g} GPUs"] if need.cpus or need.gpus else []
    return ", ".join(processors + ([f"{need.memory / GB:.1f} GB of memory"] if need.memory else []))
