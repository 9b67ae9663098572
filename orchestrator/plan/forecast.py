"""What a run would take: memory and places of its jobs, disk for the trunk, and time as far as past runs tell."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.plan.durations import estimate_expert_seconds
from orchestrator.plan.library_state import LibraryState
from orchestrator.plan.packing import pack_jobs
from orchestrator.plan.planning import Plan
from orchestrator.plan.router_forecast import LESS_FEATURES, RouterForecast, forecast_router
from orchestrator.plan.trunk_forecast import TrunkForecast, forecast_trunk
from orchestrator.pool.capacity import GB, JobResources, Node, limiting_resource, max_parallel_jobs, require_fits
from ttmoe.base import empty_body
from ttmoe.errors import InfeasibleError
from workers.training.memory import MemoryEstimate, estimate_job_memory

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.registry import Registry

MAX_EXPERTS_PER_JOB = 8  # experts in a job that says `auto`: beyond it the base's passes are full
GPU_SHARE = 0.9  # of a GPU's memory that is planned with
LESS_MEMORY = "lower train.micro_batch or base.max_length, set train.checkpointing, or add a node with more memory"


@dataclass(frozen=True)
class Forecast:
    """What the work that is to be done would take.

    ``need`` is what a job reserves (the largest decides), ``experts_per_job`` how many it trains together,
    ``at_once`` how many jobs run at a time, ``limiting_resource`` the resource that says so. ``seconds`` by task and ``total`` are
    None where no past run tells; ``total`` is of the experts alone. ``waits``: nothing fits yet, a node must join.
    """

    memory: dict[str, MemoryEstimate]
    need: JobResources
    experts_per_job: int
    jobs: int
    at_once: int
    limiting_resource: str
    trunk: TrunkForecast | None
    router: RouterForecast
    seconds: dict[str, float | None]
    total: float | None
    waits: bool

    @property
    def base_loads(self) -> int:
        """How often the base is loaded: once in each process."""
        return min(self.at_once, self.jobs)


def make_forecast(plan: Plan, standing: LibraryState, registry: Registry | None, nodes: Sequence[Node]) -> Forecast:
    """The forecast of what the standing lacks, on these nodes. Says nothing of whether it fits: see check_feasible."""
    resources, todo = plan.config.resources, standing.todo
    model = empty_body(plan.base)
    together = _together(plan, model, todo or list(plan.experts), nodes)
    need = _need(plan, model, todo or list(plan.experts), together)
    waits = resources.autoscaling and not max_parallel_jobs(nodes, need)
    at_once = (
        resources.max_parallel if resources.autoscaling else max_parallel_jobs(nodes, need, resources.max_parallel)
    )
    packs = pack_jobs({task: plan.experts[task].job for task in todo}, together)
    seconds = estimate_expert_seconds(plan, standing)
    return Forecast(
        estimate_memory(plan, model, plan.experts, 1),
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
    require_fits(nodes, JobResources(resources.cpus_per_expert, resources.gpus), "an expert")
    model, names = empty_body(plan.base), list(plan.experts if tasks is None else tasks)
    if not names:
        return
    together = _together(plan, model, names, nodes)
    found = estimate_memory(plan, model, names, together)
    largest = max(names, key=lambda task: found[task].total)
    who = f"expert {largest!r}" if together == 1 else f"a job of {together} experts such as {largest!r}"
    require_fits(nodes, _need(plan, model, names, together), who, LESS_MEMORY)
    room, asks = _gpu_room(nodes, resources.gpus), found[largest].gpu
    if resources.gpus and room and asks > room:
        what = f"{who} asks for {asks / GB:.1f} GB of a GPU, and its share of one is {room / GB:.1f} GB"
        raise InfeasibleError(what, where="resources", fix=LESS_MEMORY)


def check_router_fits(plan: Plan, standing: LibraryState, nodes: Sequence[Node]) -> None:
    """Raise InfeasibleError where a router is to be made that no node has the memory for.

    A cluster that grows is waited for.
    """
    if standing.router.state != "cached" and not plan.config.resources.autoscaling:
        memory = forecast_router(plan, empty_body(plan.base)).memory
        require_fits(nodes, JobResources(0, 0, memory), "the router", LESS_FEATURES)


def estimate_memory(plan: Plan, model: nn.Module, tasks: Collection[str], experts: int) -> dict[str, MemoryEstimate]:
    """By task the memory of a job of so many such experts; worked out once for all that are alike."""
    known: dict[tuple, MemoryEstimate] = {}
    found = {}
    for task in tasks:
        job = plan.experts[task].job
        train = job.train
        sizes = (train.batch_size, train.batch_tokens, train.micro_batch, train.checkpointing)
        key = (repr(job.adapter), job.classes, job.options, *sizes)
        if key not in known:
            known[key] = estimate_job_memory(
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


def _need(plan: Plan, model: nn.Module, tasks: Collection[str], together: int) -> JobResources:
    resources = plan.config.resources
    most = max(memory.host for memory in estimate_memory(plan, model, tasks, together).values())
    return JobResources(resources.cpus_per_expert, resources.gpus, most)


def _together(plan: Plan, model: nn.Module, tasks: Sequence[str], nodes: Sequence[Node]) -> int:
    """Experts in a job: as asked; ``auto`` is one on a CPU, and on a GPU as many as its memory holds.

    But no more than leave every place on the cluster its share.
    """
    resources = plan.config.resources
    if resources.experts_per_job != "auto":
        return resources.experts_per_job
    room, slots = (
        _gpu_room(nodes, resources.gpus),
        max_parallel_jobs(nodes, JobResources(resources.cpus_per_expert, resources.gpus)),
    )
    most = min(MAX_EXPERTS_PER_JOB, math.ceil(len(tasks) / max(1, slots)))
    for count in range(most if resources.gpus and room else 1, 1, -1):
        if max(memory.gpu for memory in estimate_memory(plan, model, tasks, count).values()) <= room:
            return count
    return 1


def _gpu_room(nodes: Sequence[Node], share: float) -> float:
    """Bytes that a job has on the smallest GPU; 0 where that is not known."""
    return min((n.gpu_memory for n in nodes if n.gpus and n.gpu_memory), default=0) * min(1.0, share) * GPU_SHARE


def _limit(nodes: Sequence[Node], need: JobResources, at_once: int) -> str:
    """What keeps more jobs from running at a time."""
    return limiting_resource(nodes, need) if nodes and at_once == max_parallel_jobs(nodes, need) else "max_parallel"


def _total(packs: list[list[float | None]], at_once: int) -> float | None:
    """Seconds until the last job ends, each going to the place that is free first; a job takes its experts' sum."""
    known = [[each for each in pack if each is not None] for pack in packs]
    if [len(pack) for pack in known] != [len(pack) for pack in packs] or (packs and not at_once):
        return None
    ends = [0.0] * max(1, min(at_once, len(packs)))
    for pack in known:
        heapq.heapreplace(ends, ends[0] + sum(pack))
    return max(ends)
