"""What a run would take: memory and places of its jobs, disk for the trunk, and time as far as past runs tell."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.capacity import GB, Need, Node, jobs_at_once, require_fits, scarce
from orchestrator.machines import nodes_here
from orchestrator.pace import expert_seconds
from orchestrator.packing import packed
from orchestrator.plan import Plan
from orchestrator.router_forecast import LESS_FEATURES, RouterForecast, forecast_router
from orchestrator.standing import Standing
from orchestrator.trunk_forecast import TrunkForecast, forecast_trunk
from ttmoe.base import empty_body
from ttmoe.errors import InfeasibleError
from workers.memory import Memory, job_memory

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.registry import Registry

__all__ = ["Forecast", "check_feasible", "check_router_fits", "forecast", "nodes_here"]
MOST_TOGETHER = 8  # experts in a job that says `auto`: beyond it the base's passes are full
GPU_SHARE = 0.9  # of a GPU's memory that is planned with
LESS_MEMORY = "lower train.micro_batch or base.max_length, set train.checkpointing, or add a node with more memory"


@dataclass(frozen=True)
class Forecast:
    """What the work that is to be done would take.

    ``need`` is what a job reserves (the largest decides), ``experts_per_job`` how many it trains together,
    ``at_once`` how many jobs run at a time, ``scarce`` the resource that says so. ``seconds`` by task and ``total`` are
    None where no past run tells; ``total`` is of the experts alone. ``waits``: nothing fits yet, a node must join.
    """

    memory: dict[str, Memory]
    need: Need
    experts_per_job: int
    jobs: int
    at_once: int
    scarce: str
    trunk: TrunkForecast | None
    router: RouterForecast
    seconds: dict[str, float | None]
    total: float | None
    waits: bool

    @property
    def base_loads(self) -> int:
        """How often the base is loaded: once in each process."""
        return min(self.at_once, self.jobs)


def forecast(plan: Plan, standing: Standing, registry: Registry | None, nodes: Sequence[Node]) -> Forecast:
    """The forecast of what the standing lacks, on these nodes. Says nothing of whether it fits: see check_feasible."""
    resources, todo = plan.config.resources, standing.todo
    model = empty_body(plan.base)
    together = _together(plan, model, todo or list(plan.experts), nodes)
    need = _need(plan, model, todo or list(plan.experts), together)
    waits = resources.autoscaling and not jobs_at_once(nodes, need)
    at_once = resources.max_parallel if resources.autoscaling else jobs_at_once(nodes, need, resources.max_parallel)
    packs = packed({task: plan.experts[task].job for task in todo}, together)
    seconds = expert_seconds(plan, standing)
    return Forecast(
        memories(plan, model, plan.experts, 1),
        need,
        together,
        len(packs),
        at_once or 0,
        _limit(nodes, need, at_once or 0),
        forecast_trunk(plan, model, todo),
        forecast_router(plan, model),
        seconds,
        _total([[seconds[task] for task in pack] for pack in packs], at_once or 0),
        waits,
    )


def check_feasible(plan: Plan, nodes: Sequence[Node], tasks: Collection[str] | None = None) -> None:
    """Raise InfeasibleError where a job of ``tasks`` (by default of any) would wait for ever, saying what it lacks.

    A cluster that grows is waited for.
    """
    resources = plan.config.resources
    if resources.autoscaling:
        return
    require_fits(nodes, Need(resources.cpus_per_expert, resources.gpus), "an expert")
    model, names = empty_body(plan.base), list(plan.experts if tasks is None else tasks)
    if not names:
        return
    together = _together(plan, model, names, nodes)
    found = memories(plan, model, names, together)
    largest = max(names, key=lambda task: found[task].total)
    who = f"expert {largest!r}" if together == 1 else f"a job of {together} experts such as {largest!r}"
    require_fits(nodes, _need(plan, model, names, together), who, LESS_MEMORY)
    room, asks = _gpu_room(nodes, resources.gpus), found[largest].gpu
    if resources.gpus and room and asks > room:
        what = f"{who} asks for {asks / GB:.1f} GB of a GPU, and its share of one is {room / GB:.1f} GB"
        raise InfeasibleError(what, where="resources", fix=LESS_MEMORY)


def check_router_fits(plan: Plan, standing: Standing, nodes: Sequence[Node]) -> None:
    """Raise InfeasibleError where a router is to be made that no node has the memory for.

    A cluster that grows is waited for.
    """
    if standing.router.state != "cached" and not plan.config.resources.autoscaling:
        memory = forecast_router(plan, empty_body(plan.base)).memory
        require_fits(nodes, Need(0, 0, memory), "the router", LESS_FEATURES)


def memories(plan: Plan, model: nn.Module, tasks: Collection[str], experts: int) -> dict[str, Memory]:
    """By task the memory of a job of so many such experts; worked out once for all that are alike."""
    known: dict[tuple, Memory] = {}
    found = {}
    for task in tasks:
        job = plan.experts[task].job
        train = job.train
        sizes = (train.batch_size, train.batch_tokens, train.micro_batch, train.checkpointing)
        key = (repr(job.adapter), job.classes, job.options, *sizes)
        if key not in known:
            known[key] = job_memory(
                model,
                job.base,
                job.adapter,
                job.classes,
                train,
                options=job.options,
                experts=experts,
                device=job.device,
            )
        found[task] = known[key]
    return found


def _need(plan: Plan, model: nn.Module, tasks: Collection[str], together: int) -> Need:
    resources = plan.config.resources
    most = max(memory.host for memory in memories(plan, model, tasks, together).values())
    return Need(resources.cpus_per_expert, resources.gpus, most)


def _together(plan: Plan, model: nn.Module, tasks: Sequence[str], nodes: Sequence[Node]) -> int:
    """Experts in a job: as asked; ``auto`` is one on a CPU, and on a GPU as many as its memory holds.

    But no more than leave every place on the cluster its share.
    """
    resources = plan.config.resources
    if resources.experts_per_job != "auto":
        return resources.experts_per_job
    room, slots = _gpu_room(nodes, resources.gpus), jobs_at_once(nodes, Need(resources.cpus_per_expert, resources.gpus))
    most = min(MOST_TOGETHER, math.ceil(len(tasks) / max(1, slots)))
    for count in range(most if resources.gpus and room else 1, 1, -1):
        if max(memory.gpu for memory in memories(plan, model, tasks, count).values()) <= room:
            return count
    return 1


def _gpu_room(nodes: Sequence[Node], share: float) -> float:
    """Bytes that a job has on the smallest GPU; 0 where that is not known."""
    return min((n.gpu_memory for n in nodes if n.gpus and n.gpu_memory), default=0) * min(1.0, share) * GPU_SHARE


def _limit(nodes: Sequence[Node], need: Need, at_once: int) -> str:
    """What keeps more jobs from running at a time."""
    return scarce(nodes, need) if nodes and at_once == jobs_at_once(nodes, need) else "max_parallel"


def _total(packs: list[list[float | None]], at_once: int) -> float | None:
    """Seconds until the last job ends, each going to the place that is free first; a job takes its experts' sum."""
    known = [[each for each in pack if each is not None] for pack in packs]
    if [len(pack) for pack in known] != [len(pack) for pack in packs] or (packs and not at_once):
        return None
    ends = [0.0] * max(1, min(at_once, len(packs)))
    for pack in known:
        heapq.heapreplace(ends, ends[0] + sum(pack))
    return max(ends)
