"""Forecast of a run: memory of its jobs, how many run in parallel, disk space and time; and whether it fits."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.plan.durations import estimate_expert_seconds
from orchestrator.plan.library_state import LibraryState
from orchestrator.plan.memory_fit import memory_for_a_job
from orchestrator.plan.packing import pack_jobs
from orchestrator.plan.planning import Plan
from orchestrator.plan.quantities import format_bytes
from orchestrator.plan.router_forecast import LESS_FEATURES, LESS_SPLIT, RouterForecast, forecast_router
from orchestrator.plan.shard_sizes import ShardSizes, forecast_shards
from orchestrator.plan.space import plan_space
from orchestrator.plan.throughput import seconds_at, stated_throughput
from orchestrator.plan.trunk_forecast import TrunkForecast, forecast_trunk
from orchestrator.pool.capacity import JobResources, Node, limiting_resource, max_parallel_jobs, require_fits
from ttmoe.base import empty_body
from ttmoe.errors import InfeasibleError
from workers.training.memory import MemoryEstimate, estimate_job_memory

if TYPE_CHECKING:
    from torch import nn

MAX_EXPERTS_PER_JOB = 8  # maximum of `experts_per_job: auto`; larger jobs do not use the base's passes better
LESS_MEMORY = "lower train.micro_batch or base.max_length, set train.checkpointing, or add a node with more memory"


@dataclass(frozen=True)
class Forecast:
    """Forecast of the work that has to be done.

    Attributes:
        memory: Memory of a job with this expert alone, by task.
        job_resources: Resources that each job reserves; the largest job decides.
        worker_resources: What a worker reserves: more memory than a job, for those of stage 2, where as many still fit.
        experts_per_job: Maximum number of experts that a job trains together.
        jobs: Number of jobs.
        parallel_jobs: Number of jobs that run at the same time.
        limiting_resource: What limits this number: ``CPU``, ``GPU``, ``memory`` or ``max_parallel``.
        trunk: Forecast of cached trunk states; None if none are cached.
        router: Forecast of stage 2.
        expert_seconds: Training time by task in seconds; without an earlier version with times, that of a stated
            throughput of the nodes, or None.
        total_seconds: Time of all expert jobs in seconds; None if the time of an expert is unknown.
        waits_for_nodes: Whether no node can run a job yet and the run waits for new nodes.
        shards: Memory of the trainings by the number of processes that divide the base; empty if none do.
    """

    memory: dict[str, MemoryEstimate]
    job_resources: JobResources
    worker_resources: JobResources
    experts_per_job: int
    jobs: int
    parallel_jobs: int
    limiting_resource: str
    trunk: TrunkForecast | None
    router: RouterForecast
    expert_seconds: dict[str, float | None]
    total_seconds: float | None
    waits_for_nodes: bool
    shards: tuple[ShardSizes, ...] = ()

    @property
    def base_loads(self) -> int:
        """Number of times that the base is loaded; processes that train together load it once, or a part each."""
        return min(self.parallel_jobs, self.jobs)


def make_forecast(plan: Plan, state: LibraryState, nodes: Sequence[Node]) -> Forecast:
    """Forecast the work that the library still needs.

    The forecast does not check whether the work fits the nodes, see ``check_feasible``.

    Args:
        plan: The plan.
        state: State of the library.
        nodes: Nodes on which the jobs will run.
    """
    resources, todo = plan.config.resources, state.todo
    model, tasks = empty_body(plan.base), todo or list(plan.experts)
    experts_per_job = _choose_experts_per_job(plan, model, tasks, nodes)
    job_resources = _job_resources(plan, model, tasks, experts_per_job)
    if resources.autoscaling:
        parallel_jobs = resources.max_parallel or 0  # the schema requires it
    else:
        parallel_jobs = max_parallel_jobs(nodes, job_resources, resources.max_parallel)
    router = forecast_router(plan, model)
    packs = pack_jobs({task: plan.experts[task].job for task in todo}, experts_per_job)
    seconds = estimate_expert_seconds(plan, state)
    if throughput := stated_throughput(nodes):
        seconds = {task: seconds_at(plan.experts[task], model, throughput * plan.processes) if known is None else known
                   for task, known in seconds.items()}  # fmt: skip
    return Forecast(
        memory=estimate_memory(plan, model, plan.experts, 1),
        job_resources=job_resources,
        worker_resources=_with_room_for_stage2(job_resources, router, nodes),
        experts_per_job=experts_per_job,
        jobs=len(packs),
        parallel_jobs=parallel_jobs,
        limiting_resource=_find_limit(nodes, job_resources, parallel_jobs),
        trunk=forecast_trunk(plan, model, todo),
        router=router,
        expert_seconds=seconds,
        total_seconds=_total_seconds([[seconds[task] for task in pack] for pack in packs], parallel_jobs),
        waits_for_nodes=resources.autoscaling and not max_parallel_jobs(nodes, job_resources),
        shards=forecast_shards(plan, model),
    )


def _with_room_for_stage2(job: JobResources, router: RouterForecast, nodes: Sequence[Node]) -> JobResources:
    """Return what a worker reserves so that it need not be replaced by a larger one for the router."""
    stage2 = [router.features, router.training, router.testing, *([router.comparing] if router.compares_depths else [])]
    roomy = replace(job, memory=max(job.memory, *(each.memory for each in stage2)))
    return roomy if max_parallel_jobs(nodes, roomy) == max_parallel_jobs(nodes, job) else job


def check_feasible(plan: Plan, nodes: Sequence[Node], tasks: Collection[str] | None = None) -> None:
    """Check that the nodes can run the jobs; with autoscaling the check is skipped, because nodes may be added.

    Args:
        plan: The plan.
        nodes: Nodes on which the jobs will run.
        tasks: Tasks that will be trained; by default all.

    Raises:
        InfeasibleError: If a job would wait forever; it names the missing resource.
    """
    if plan.config.resources.autoscaling:
        return
    require_fits(nodes, plan.training_resources, "an expert")
    model, names = empty_body(plan.base), list(plan.experts if tasks is None else tasks)
    if not names:
        return
    count = _choose_experts_per_job(plan, model, names, nodes)
    memory = estimate_memory(plan, model, names, count)
    largest = max(names, key=lambda task: memory[task].total)
    weights, room = memory[largest].base, memory_for_a_job(nodes, plan.resources)
    if plan.resources.gpus and room and weights > room:
        what = f"the base's weights take {format_bytes(weights)}, and a job has {format_bytes(room)} of GPU memory"
        smaller = "" if plan.base.quantize == "nf4" else "base.quantize: nf4 (a quarter of 16 bits), "
        whole = plan.config.train.engine in ("torch", "ddp")
        divided = "train.engine: auto, which may divide a base among GPUs, " if whole else ""
        fix = f"use {divided}{smaller}a smaller base, or more GPUs, or GPUs with more memory"
        raise InfeasibleError(what, where="base", fix=fix)
    what = f"expert {largest!r}" if count == 1 else f"a job of {count} experts such as {largest!r}"
    require_fits(nodes, _job_resources(plan, model, names, count), what, LESS_MEMORY)
    required = memory[largest].gpu
    if plan.resources.gpus and room and required > room:
        share = f"{format_bytes(required)} of GPU memory, and {format_bytes(room)} are available to it"
        raise InfeasibleError(f"{what} requires {share}", where="resources", fix=LESS_MEMORY)


def check_router_fits(plan: Plan, state: LibraryState, nodes: Sequence[Node]) -> None:
    """Raise InfeasibleError if a router has to be trained and no node has the memory for it.

    With autoscaling the check is skipped, because nodes may be added.
    """
    if state.router.state != "cached" and not plan.config.resources.autoscaling:
        forecast = forecast_router(plan, empty_body(plan.base))
        require_fits(nodes, JobResources(0, 0, forecast.training.memory), "the router", LESS_FEATURES)
        require_fits(nodes, forecast.features, "a job of the router's features", LESS_SPLIT)
        require_fits(nodes, forecast.testing, "the test of the router", LESS_FEATURES)
        if forecast.compares_depths:
            fix = f"set router.compare_depths to false, or {LESS_SPLIT}"
            require_fits(nodes, forecast.comparing, "the comparison of routers on fewer layers", fix)


def check_search_fits(plan: Plan, state: LibraryState, nodes: Sequence[Node]) -> None:
    """Raise InfeasibleError if a search has to be made and no node can run a trial of it."""
    if state.search_is_missing:
        check_trial_fits(plan, nodes)


def check_trial_fits(plan: Plan, nodes: Sequence[Node]) -> None:
    """Raise InfeasibleError if no node can run a trial of the plan's search; with autoscaling nodes may be added."""
    if not plan.config.resources.autoscaling:
        require_fits(nodes, trial_resources(plan), "a trial of the search", LESS_MEMORY)


def trial_resources(plan: Plan) -> JobResources:
    """Return what a job of the plan's search reserves: what trials of the largest experts of the space need."""
    model = empty_body(plan.base)
    largest = _largest_trials(plan, model)
    return _job_resources(largest, model, largest.experts, trials_per_job(plan))


def trials_per_job(plan: Plan) -> int:
    """Return how many trials of a task are trained together; ``auto`` is decided as for experts."""
    if (search := plan.config.search) is None:
        raise ValueError("the config has no search")
    if search.trials_per_job != "auto":
        return search.trials_per_job
    model = empty_body(plan.base)
    largest = _largest_trials(plan, model)
    return _choose_experts_per_job(largest, model, [*largest.experts] * search.trials, plan.nodes)


def _largest_trials(plan: Plan, model: nn.Module) -> Plan:
    """Return the plan with the largest experts of the search's spaces in place of its own."""
    trials, passes = {}, (plan.processes, plan.base.max_length)
    for task in plan.config.searched_tasks:
        expert, train = plan.experts[task], plan.config.search_train(task)
        adapters = plan_space(plan, task, model).largest_adapters()
        ranks = plan.config.search.references if plan.config.search else ()
        adapters += [replace(expert.job.adapter, method="lora", rank=rank, shape="auto") for rank in ranks]
        for number, adapter in enumerate(adapters):
            job = replace(expert.job, adapter=adapter, train=train.with_memory_of(expert.job.train, *passes))
            trials[f"{task} {number}"] = replace(expert, job=job)
    return replace(plan, experts=trials, processes=1)


def estimate_memory(plan: Plan, model: nn.Module, tasks: Collection[str], experts: int) -> dict[str, MemoryEstimate]:
    """Estimate the memory of jobs.

    Args:
        plan: The plan.
        model: Body of the base; its modules may be on the meta device.
        tasks: Tasks to estimate.
        experts: Number of experts in each job, all with the settings of the task.

    Returns:
        Estimate by task.
    """
    cache: dict[tuple, MemoryEstimate] = {}  # tasks with equal settings have the same estimate
    estimates = {}
    for task in tasks:
        job = plan.experts[task].job
        train = job.train
        sizes = (train.batch_size, train.batch_tokens, train.micro_batch, train.checkpointing)
        key = (repr(job.adapter), job.classes, job.options, train.engine, repr(train.deepspeed), *sizes)
        if key not in cache:
            cache[key] = estimate_job_memory(
                model,
                job.base,
                job.adapter,
                job.classes,
                train,
                options=job.options,
                experts=experts,
                device=job.device,
                processes=plan.processes,
            )
        estimates[task] = cache[key]
    return estimates


def _job_resources(plan: Plan, model: nn.Module, tasks: Collection[str], experts: int) -> JobResources:
    memory = max(estimate.host for estimate in estimate_memory(plan, model, tasks, experts).values())
    return replace(plan.training_resources, memory=memory)


def _choose_experts_per_job(plan: Plan, model: nn.Module, tasks: Sequence[str], nodes: Sequence[Node]) -> int:
    """Return the number of experts in a job.

    ``auto`` is 1 on a CPU, and on a GPU as many as fit its memory, but few enough that every GPU gets a job.
    """
    settings, resources = plan.config.resources, plan.training_resources
    if settings.experts_per_job != "auto":
        return settings.experts_per_job
    available = memory_for_a_job(nodes, resources)
    parallel_jobs = max_parallel_jobs(nodes, resources)
    limit = min(MAX_EXPERTS_PER_JOB, math.ceil(len(tasks) / max(1, parallel_jobs)))
    for count in range(limit if resources.gpus and available else 1, 1, -1):
        if max(estimate.gpu for estimate in estimate_memory(plan, model, tasks, count).values()) <= available:
            return count
    return 1


def _find_limit(nodes: Sequence[Node], job: JobResources, parallel_jobs: int) -> str:
    """Return what limits the number of parallel jobs."""
    return limiting_resource(nodes, job) if nodes and parallel_jobs == max_parallel_jobs(nodes, job) else "max_parallel"


def _total_seconds(packs: list[list[float | None]], parallel_jobs: int) -> float | None:
    """Return the seconds until the last job ends; None if a time is unknown.

    A job takes the sum of its experts' seconds and starts in the place that is free first.
    """
    known = [[seconds for seconds in pack if seconds is not None] for pack in packs]
    if [len(pack) for pack in known] != [len(pack) for pack in packs] or (packs and not parallel_jobs):
        return None
    ends = [0.0] * max(1, min(parallel_jobs, len(packs)))
    for pack in known:
        heapq.heapreplace(ends, ends[0] + sum(pack))
    return max(ends)
