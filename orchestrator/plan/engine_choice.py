"""Choose the engine of a run's trainings and the number of processes of each: the cheapest that fits the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.plan.planning import Plan
from orchestrator.pool.capacity import jobs_on_node
from ttmoe.errors import InputError
from ttmoe.quantization import NOT_QUANTISED
from workers.training.settings import TrainSettings, ZeroSettings

MOST_PROCESSES = 64


@dataclass(frozen=True)
class EngineChoice:
    """An engine with its settings, and the number of processes that train an expert together."""

    engine: str
    zero: ZeroSettings
    processes: int = 1

    def apply(self, plan: Plan) -> Plan:
        """Return the plan with this choice."""
        settings = {"engine": self.engine, "deepspeed": self.zero}
        experts = {
            task: replace(expert, job=replace(expert.job, train=expert.job.train.model_copy(update=settings)))
            for task, expert in plan.experts.items()
        }
        return replace(plan, experts=experts, processes=self.processes)

    def __str__(self) -> str:
        if self.engine == "torch":
            return "torch, one process"
        text = f"{self.engine}, {self.processes} process{'es' if self.processes > 1 else ''} for each job"
        if self.engine == "ddp":
            return text
        places = [f"{what} on {where}" for what, where in (("base", self.zero.offload_param),
                  ("optimizer", self.zero.offload_optimizer)) if where != "none"]  # fmt: skip
        return ", ".join([text, f"ZeRO {self.zero.stage}", *places])


def engine_choices(plan: Plan) -> Iterator[EngineChoice]:
    """Yield the engines that the config permits, the cheapest first.

    Args:
        plan: The plan; its engine is not chosen yet.

    Raises:
        InputError: If tasks name different engines, or settings exclude each other.
    """
    train, asked = _common_settings(plan), plan.config.resources.processes_per_expert
    zero, room = train.deepspeed, _room(plan)
    _require_permitted(plan, train)
    if plan.config.resources.autoscaling and asked == "auto" and train.engine in ("ddp", "deepspeed"):
        raise InputError("nodes may be added, so `auto` cannot tell how many processes there is room for",
                         where="resources.processes_per_expert", fix="give their number")  # fmt: skip
    if train.engine == "ddp":
        on_a_node = max((jobs_on_node(node, plan.resources) for node in plan.nodes), default=1)
        most = max(1, min(MOST_PROCESSES, on_a_node))
        fewer = [most, *(count for count in reversed(powers_of_two(most)) if count < most)]  # where memory is scarce
        yield from (EngineChoice("ddp", zero, count) for count in (fewer if asked == "auto" else [asked]))
        return
    counts = powers_of_two(room) if asked == "auto" else [asked]
    if train.engine == "deepspeed":
        yield from (EngineChoice("deepspeed", zero, count) for count in counts)
        return
    if asked == "auto" or asked == 1:
        yield EngineChoice("torch", zero)
    elif train.engine == "auto":
        yield EngineChoice("ddp", zero, asked)
    if train.engine == "auto" and plan.base.quantize == NOT_QUANTISED:  # ZeRO 3 does not divide quantised weights
        parted = zero.model_copy(update={"stage": 3})
        yield from (EngineChoice("deepspeed", parted, count) for count in counts if count > 1)
        if zero.offload_param == "none":
            outside = parted.model_copy(update={"offload_param": "cpu"})
            yield from (EngineChoice("deepspeed", outside, count) for count in counts if plan.resources.gpus)


def _common_settings(plan: Plan) -> TrainSettings:
    """Return the settings of the engine, which all trained tasks have in common."""
    settings = {
        task: plan.config.task_train(task) for task, expert in plan.experts.items() if expert.named is None
    } or {"": plan.config.train}
    first = next(iter(settings.values()))
    for task, train in settings.items():
        if (train.engine, train.deepspeed) != (first.engine, first.deepspeed):
            raise InputError("the tasks of a library train with the same engine", where=f"tasks.{task}.train",
                             fix="write `engine` and `deepspeed` in the section `train`")  # fmt: skip
    return first


def _require_permitted(plan: Plan, train: TrainSettings) -> None:
    """Raise InputError for settings that exclude each other."""
    asked = plan.config.resources.processes_per_expert
    if train.engine == "torch" and asked not in ("auto", 1):
        raise InputError(f"engine torch trains in one process, not {asked}", where="resources.processes_per_expert",
                         fix="use `train.engine: ddp`, or deepspeed for a base too large for a GPU")  # fmt: skip
    quantised = plan.base.quantize != NOT_QUANTISED
    if quantised and train.engine == "deepspeed" and train.deepspeed.stage == 3:
        raise InputError(f"ZeRO 3 does not divide weights that are quantised ({plan.base.quantize})",
                         where="train.deepspeed.stage", fix="use stage 2, or `base.quantize: none`")  # fmt: skip
    if train.shards_base and plan.base.dtype == "float16" and not plan.resources.gpus:
        raise InputError("DeepSpeed divides no base in float16 on CPUs", where="base.dtype",
                         fix="use bfloat16 or float32")  # fmt: skip
    if (asked not in ("auto", 1) or train.engine == "ddp") and 0 < plan.resources.gpus < 1:
        raise InputError("processes that train together need a GPU each, not a share of one",
                         where="resources.gpus_per_expert", fix="set it to 1, or to 0")  # fmt: skip


def _room(plan: Plan) -> int:
    """Return how many processes the nodes have room for, at most ``MOST_PROCESSES``."""
    if 0 < plan.resources.gpus < 1:
        return 1
    return max(1, min(MOST_PROCESSES, sum(jobs_on_node(node, plan.resources) for node in plan.nodes)))


def powers_of_two(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to the largest that is no more than ``most``."""
    return [2**exponent for exponent in range(most.bit_length())]
