"""The memory of trainings on a base that ZeRO 3 divides, for 1 to 64 processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from orchestrator.plan.engine_choice import MOST_PROCESSES, EngineChoice, powers_of_two
from orchestrator.plan.memory_fit import estimate_plan, fits_nodes
from orchestrator.plan.planning import Plan
from ttmoe.quantization import NOT_QUANTISED
from workers.training.settings import TrainSettings

if TYPE_CHECKING:
    from torch import nn

PLACES: tuple[Literal["none", "cpu"], ...] = ("none", "cpu")


@dataclass(frozen=True)
class ShardSizes:
    """The least memory of each process of a training, in bytes: with one row in a pass, and recomputed layers.

    Attributes:
        processes: Number of processes that divide the base.
        offload_param: Where they keep their parts: ``none`` is on the GPUs.
        gpu: Bytes of GPU memory of each; 0 on a CPU.
        host: Bytes of main memory of each.
        fits: Whether the nodes of the plan have room for it.
    """

    processes: int
    offload_param: str
    gpu: int
    host: int
    fits: bool


def forecast_shards(plan: Plan, model: nn.Module) -> tuple[ShardSizes, ...]:
    """Return the sizes of the largest expert's training, if the plan divides the base or no engine fits the nodes.

    Args:
        plan: The plan, with its engine.
        model: Body of the base; its modules may be on the meta device.
    """
    divides = plan.engine.shards_base or not fits_nodes(plan, model)
    if not divides or plan.base.quantize != NOT_QUANTISED:
        return ()
    smallest, rows = _smallest_passes(plan), []
    for place in PLACES if plan.resources.gpus else PLACES[:1]:
        zero = plan.engine.deepspeed.model_copy(update={"stage": 3, "offload_param": place, "nvme_path": None})
        for processes in powers_of_two(MOST_PROCESSES):
            divided = EngineChoice("deepspeed", zero, processes).apply(smallest)
            largest = max(estimate_plan(divided, model), key=lambda estimate: estimate.total)
            rows.append(ShardSizes(processes, place, largest.gpu, largest.host, fits_nodes(divided, model)))
    return tuple(rows)


def _smallest_passes(plan: Plan) -> Plan:
    """Return the plan with one row in a pass and recomputed layers, as far as the config leaves the choice."""
    experts = {}
    for task, expert in plan.experts.items():
        asked = plan.config.task_train(task)
        smallest = TrainSettings(micro_batch=1, checkpointing=True)
        experts[task] = replace(
            expert, job=replace(expert.job, train=asked.with_memory_of(smallest, 1, plan.base.max_length))
        )
    return replace(plan, experts=experts)
