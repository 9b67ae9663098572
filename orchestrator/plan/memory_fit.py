"""Settings that decide only the memory of a training and its engine: ``auto`` becomes what fits the nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.plan.engine_choice import engine_choices
from orchestrator.plan.planning import Plan
from orchestrator.pool.capacity import JobResources, Node, max_parallel_jobs
from workers.expert_job import ExpertJob, estimate_jobs_memory
from workers.training.memory import MemoryEstimate
from workers.training.settings import TrainSettings

if TYPE_CHECKING:
    from torch import nn

GPU_SHARE = 0.9  # share of a GPU's memory that jobs may use
# Tokens in a pass below which layers are recomputed rather than rows halved: smaller products leave a GPU idle. A
# customary value, not measured.
LEAST_TOKENS = 2048


def fit_memory(plan: Plan, model: nn.Module) -> Plan:
    """Return the plan with its engine, and every ``micro_batch: auto`` and ``checkpointing: auto`` resolved.

    All rows of a step pass at once if they fit. Otherwise they are halved, then layers are recomputed as well. The
    engine is the cheapest with which every expert fits; if none does, the first one. Identities stay.

    Args:
        plan: The plan.
        model: Body of the base; its modules may be on the meta device.

    Raises:
        InputError: If settings of the engine exclude each other.
    """
    fitted = (fit_passes(choice.apply(plan), model) for choice in engine_choices(plan))
    first, rest = next(fitted), fitted
    if not plan.nodes or plan.config.resources.autoscaling or fits_nodes(first, model):
        return first
    return next((each for each in rest if fits_nodes(each, model)), first)


def fits_nodes(plan: Plan, model: nn.Module) -> bool:
    """Return whether every expert of a plan fits the nodes, as far as their memory is known.

    Args:
        plan: The plan, with engine and passes resolved.
        model: Body of the base.
    """
    available, estimates = memory_for_a_job(plan.nodes, plan.resources), estimate_plan(plan, model)
    on_devices = not available or all((each.gpu or each.total) <= available for each in estimates)
    job = replace(plan.training_resources, memory=max(each.host for each in estimates))
    return on_devices and max_parallel_jobs(plan.nodes, job) > 0


def estimate_plan(plan: Plan, model: nn.Module) -> list[MemoryEstimate]:
    """Return the memory of each kind of expert in a plan, in one of its processes."""
    jobs = [expert.job for expert in plan.experts.values()]
    distinct = {(repr(job.adapter), job.classes, job.options, repr(job.train)): job for job in jobs}
    return [estimate_jobs_memory([job], model, plan.processes) for job in distinct.values()]


def fit_passes(plan: Plan, model: nn.Module) -> Plan:
    """Return the plan with every ``micro_batch: auto`` and ``checkpointing: auto`` resolved; its engine stays."""
    available = memory_for_a_job(plan.nodes, plan.resources)
    together = plan.config.resources.experts_per_job
    count = (
        1 if together == "auto" else min(together, len(plan.experts))
    )  # auto adds experts to a job as far as they fit
    settings: dict[tuple[object, ...], TrainSettings] = {}  # tasks with equal settings have equal ones
    experts = {}
    for task, expert in plan.experts.items():
        job = expert.job
        key = (repr(job.adapter), job.classes, job.options, repr(job.train))
        if key not in settings:
            settings[key] = _fit(job, lambda each: _bytes(each, model, count, plan.processes), available)
        experts[task] = replace(expert, job=replace(job, train=settings[key]))
    return replace(plan, experts=experts)


def memory_for_a_job(nodes: Sequence[Node], job: JobResources) -> float:
    """Return the bytes that a job may use: on a GPU, those of the smallest that suits it; 0 if unknown.

    On a CPU these are the bytes of the node with the most memory: a job that fits only there runs there alone.
    """
    suitable = [node for node in nodes if node.suits(job)]
    if not job.gpus:
        return max((node.memory for node in suitable), default=0)
    smallest = min((node.gpu_memory for node in suitable if node.gpus and node.gpu_memory), default=0)
    return smallest * min(1.0, job.gpus) * GPU_SHARE


def _fit(job: ExpertJob, count_bytes: Callable[[ExpertJob], int], available: float) -> TrainSettings:
    """Return the first of the settings that fits; without knowledge of the memory the first, if none fits the last."""
    choices = [job.train.model_copy(update=update) for update in _choices(job)]
    if not available:
        return choices[0]
    return next((each for each in choices if count_bytes(replace(job, train=each)) <= available), choices[-1])


def _choices(job: ExpertJob) -> Iterator[dict[str, object]]:
    """Yield values of ``micro_batch`` and ``checkpointing``, those first that cost the least time."""
    train, tokens = job.train, job.base.max_length
    rows = max(1, train.batch_tokens // tokens) if train.batch_tokens else train.batch_size
    sizes: list[int | None] = [None]
    while rows > 1:
        rows = (rows + 1) // 2
        sizes.append(rows)
    large = [size for size in sizes if size is None or size * job.options * tokens >= LEAST_TOKENS]
    for recomputes in (False, True) if train.checkpointing == "auto" else (train.checkpointing,):
        fitting = large if train.checkpointing == "auto" and not recomputes else sizes
        for size in fitting if train.micro_batch == "auto" else [train.micro_batch]:
            yield {"micro_batch": size, "checkpointing": recomputes}


def _bytes(job: ExpertJob, model: nn.Module, experts: int, processes: int) -> int:
    estimate = estimate_jobs_memory([job] * experts, model, processes)
    return estimate.gpu or estimate.total
