"""``ttmoe plan``: print what a run would do and why, its resources and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.plan.engine_choice import EngineChoice
from orchestrator.plan.expert_plan import ExpertPlan
from orchestrator.plan.forecast import Forecast
from orchestrator.plan.json_output import to_json
from orchestrator.plan.library_state import LibraryState
from orchestrator.plan.nodes import DECLARED
from orchestrator.plan.planned_library import PlannedLibrary
from orchestrator.plan.planning import Plan
from orchestrator.plan.quantities import format_bytes, format_duration, format_names
from orchestrator.plan.router_forecast import RouterForecast
from orchestrator.plan.shard_sizes import ShardSizes
from orchestrator.pool.capacity import Node
from workers.base.base_sources import installed_package
from workers.data.prepared import REMOVED_ROWS
from workers.training.memory import MemoryEstimate
from workers.training.settings import TrainSettings

MAX_TABLE_ROWS = 40
MAX_DATA_LINES = 8
MEMORY_PARTS = ("base", "activations", "logits", "adapters", "gradients", "optimizer", "process")
STATE_STYLES = {"cached": "dim", "changed": "yellow", "missing": "bold"}


def show_plan(planned: PlannedLibrary, console: Console, *, as_json: bool = False) -> None:
    """Print a plan.

    Args:
        planned: The plan.
        console: Where the plan is printed.
        as_json: Print one JSON object instead of tables.
    """
    if as_json:
        console.out(to_json(planned.to_dict()), highlight=False)
    else:
        _print_plan(planned.plan, planned.state, planned.forecast, console)


def _print_plan(plan: Plan, state: LibraryState, forecast: Forecast, console: Console) -> None:
    console.print(f"Library {plan.folders.library} on {plan.base_text}", soft_wrap=True, highlight=False, markup=False)
    console.print(_table(plan, state, forecast))
    lines = [
        *_base(plan),
        *_other_experts(plan, state),
        *_stages(state),
        *_nodes(plan),
        *_resources(plan, state, forecast),
    ]
    for label, text in lines:
        console.print(f"{label:<11}{text}", soft_wrap=True, highlight=False, markup=False)
    if state.has_work and forecast.shards:
        console.print(*_shards(plan, forecast.shards), sep="\n")


def _table(plan: Plan, state: LibraryState, forecast: Forecast) -> Table:
    table = Table(box=SIMPLE_HEAD, title=_counts(state), title_justify="left")
    table.add_column("task", overflow="fold", max_width=20)
    table.add_column("state", no_wrap=True)
    for heading in ("adapter", "LoRA-16", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("time", justify="right")
    table.add_column("reason", overflow="fold")
    for task in _table_tasks(state):
        expert, current = plan.experts[task], state.experts[task]
        time = "" if current.state == "cached" else _duration(forecast.expert_seconds[task])
        sizes = [f"{expert.job.parameters:,}", f"{expert.lora_parameters:,}", format_bytes(forecast.memory[task].total)]
        row = [task, current.state, *sizes, time, current.reason]
        table.add_row(*map(escape, row), style=STATE_STYLES[current.state])
    return table


def _base(plan: Plan) -> list[tuple[str, str]]:
    """Return a line about a checksum that could not be compared."""
    base = plan.config.base
    if not (base.sha256 and base.package and installed_package(base.package)):
        return []
    text = f"{plan.base.id} is installed; base.sha256, the digest of its wheel, was not compared with it"
    return [("base", text)]


def _shards(plan: Plan, shards: Sequence[ShardSizes]) -> tuple[str, Table]:
    """Return a heading and a table of the memory of each process, by the number of those that divide the base."""
    unit = "GPU" if plan.resources.gpus else "process"
    parts = "GPU memory + main memory" if unit == "GPU" else "main memory"
    title = f"\nleast {parts} for each {unit}, if ZeRO 3 divides the base (*: the nodes have no room)"
    table = Table(box=SIMPLE_HEAD)
    table.add_column(f"{unit}{'s' if unit == 'GPU' else 'es'}", justify="right")
    for place in dict.fromkeys(sizes.offload_param for sizes in shards):
        heading = "offload_param: cpu" if place == "cpu" else "base on the GPUs" if unit == "GPU" else "memory"
        table.add_column(heading, justify="right", no_wrap=True)
    for processes in dict.fromkeys(sizes.processes for sizes in shards):
        cells = [_shard(sizes) for sizes in shards if sizes.processes == processes]
        chosen = plan.engine.shards_base and processes == plan.processes
        table.add_row(str(processes), *map(escape, cells), style="bold" if chosen else "")
    return title, table


def _shard(sizes: ShardSizes) -> str:
    gpu = f"{format_bytes(sizes.gpu)} + " if sizes.gpu else ""
    return f"{gpu}{format_bytes(sizes.host)}{'' if sizes.fits else ' *'}"


def _table_tasks(state: LibraryState) -> list[str]:
    """Return the tasks that have a row: all tasks, or in a large library the first ones that have to be made."""
    return list(state.experts) if len(state.experts) <= MAX_TABLE_ROWS else state.todo[:MAX_TABLE_ROWS]


def _counts(state: LibraryState) -> str:
    states = [expert.state for expert in state.experts.values()]
    counts = [f"{states.count(name)} {name}" for name in STATE_STYLES if name in states]
    noun = "expert" if len(states) == 1 else "experts"
    return f"{len(states)} {noun}: {', '.join(counts)}"


def _other_experts(plan: Plan, state: LibraryState) -> list[tuple[str, str]]:
    """Return lines about experts without a row, and about all experts together; each is a label and a text."""
    shown = set(_table_tasks(state))
    hidden = [expert.state for task, expert in state.experts.items() if task not in shown]
    cached = hidden.count("cached")
    counts = [f"{count:,} {what}" for count, what in ((len(hidden) - cached, "to do"), (cached, "cached")) if count]
    lines = [("not shown", " and ".join(counts))] if counts else []
    parameters = sum(expert.job.parameters for expert in plan.experts.values())
    lora = sum(expert.lora_parameters for expert in plan.experts.values())
    lines.append(("parameters", f"{parameters:,} in all adapters, without heads; LoRA of rank 16 has {lora:,}"))
    lines += _data_lines(plan)
    if state.orphaned:
        names = format_names(state.orphaned, 10)
        lines.append(("orphaned", f"{names}: in the registry but not in the config; not changed"))
    return lines


def _data_lines(plan: Plan) -> list[tuple[str, str]]:
    """Return lines about rows that are in no split or are cut, for the first tasks that have any."""
    experts = [each for each in plan.experts.values() if each.job.data.removed or each.cut_share]
    texts = [_describe_data(each, plan.base.max_length) for each in experts[:MAX_DATA_LINES]]
    if len(experts) > MAX_DATA_LINES:
        texts.append(f"and {len(experts) - MAX_DATA_LINES} more tasks (--json lists all)")
    return [("data" if i == 0 else "", text) for i, text in enumerate(texts)]


def _describe_data(expert: ExpertPlan, max_length: int) -> str:
    data = expert.job.data
    text = f"{data.name}: {sum(data.rows.values()) + sum(data.removed.values()):,} rows"
    if data.removed:
        text += ", without " + ", ".join(f"{rows:,} {REMOVED_ROWS[reason]}" for reason, rows in data.removed.items())
    if expert.cut_share:
        share = f"about {expert.cut_share:.0%}" if expert.cut_share >= 0.01 else "fewer than 1%"
        text += f"; {share} have more than {max_length} tokens and are cut (base.max_length)"
    return text


def _stages(state: LibraryState) -> list[tuple[str, str]]:
    stages = {"router": state.router, "search": state.search}
    return [(name, f"{stage.state}: {stage.reason}") for name, stage in stages.items() if stage]


def _nodes(plan: Plan) -> list[tuple[str, str]]:
    """Return a line for each kind of node; each is a label and a text."""
    kinds = Counter(_describe_node(node) for node in plan.nodes)
    texts = [f"{count} with {kind}" if len(plan.nodes) > 1 else kind for kind, count in kinds.items()]
    return [("nodes" if i == 0 else "", text) for i, text in enumerate(texts)]


def _describe_node(node: Node) -> str:
    """Return the hardware of a node, such as ``16 CPUs, 2 GPUs (NVIDIA H100, 85 GB, bfloat16)``."""
    parts = [f"{node.cpus:g} CPUs"]
    if node.name.startswith(DECLARED):
        parts.append(f"{format_bytes(node.memory)} of memory for jobs")
    if node.gpus:
        gpus = node.hardware.gpus if node.hardware else ()
        kinds = {f"{gpu.name}, {format_bytes(gpu.memory)}, {'bfloat16' if gpu.bf16 else 'float32'}" for gpu in gpus}
        parts.append(f"{node.gpus:g} GPUs ({'; '.join(sorted(kinds)) or 'unknown'})")
    elif node.hardware:
        parts[0] += f" ({'bfloat16' if node.hardware.bf16 else 'float32'})"
    return ", ".join(parts)


def _resources(plan: Plan, state: LibraryState, forecast: Forecast) -> list[tuple[str, str]]:
    """Return lines about the resources and the time of the work; each is a label and a text."""
    if not state.has_work:
        return [("to do", "nothing")]
    job = forecast.job_resources
    gpus = f", {job.gpus:g} GPUs" if job.gpus else ""
    processes = f"{job.processes} processes with " if job.processes > 1 else ""
    lines = [("each job", f"{processes}{job.cpus:g} CPUs{gpus}, {format_bytes(job.memory)} of memory")]
    if plan.engine.engine != "torch":
        lines.append(("engine", str(EngineChoice(plan.engine.engine, plan.engine.deepspeed, plan.processes))))
    if state.todo:
        largest = max(state.todo, key=lambda task: forecast.memory[task].total)
        lines += [("memory", _memory(forecast.memory[largest]))]
        lines += [("", f"of {largest}, the largest expert, {_passes(plan.experts[largest].job.train)}")]
        experts = "1 expert" if forecast.experts_per_job == 1 else f"up to {forecast.experts_per_job} experts"
        lines.append(("jobs", f"{forecast.jobs} with {experts} each, {_parallel_jobs(forecast)}"))
    if forecast.trunk:
        limit = f", more than storage.trunk_gb ({plan.config.storage.trunk_gb:g})" if not forecast.trunk.fits else ""
        size, share = format_bytes(forecast.trunk.bytes), f"{forecast.trunk.share:.0%}"
        lines.append(("trunk", f"about {size} on disk{limit}; training steps skip {share} of the base's layers"))
    if state.router.state != "cached":
        lines += _router(forecast.router)
    if state.todo:
        seconds = forecast.total_seconds
        unknown = "unknown: no finished training on this base"
        stated = max(node.tflops for node in plan.nodes) if plan.nodes else 0
        source = f", at {stated:g} TFLOP/s of each GPU (tflops=)" if stated else ""
        known = f"about {format_duration(seconds or 0)} for the experts{source}"
        lines.append(("time", unknown if seconds is None else known))
        if hours := plan.config.limits.hours:
            less = ", less than the experts take" if seconds and seconds > hours * 3600 else ""
            lines.append(("limit", f"{format_duration(hours * 3600)}{less}: then repeat the run to continue"))
    return lines


def _router(router: RouterForecast) -> list[tuple[str, str]]:
    """Return lines about stage 2: each kind of job with what it reserves."""
    training = f"{router.training.cpus:g} CPUs, {format_bytes(router.training.memory)} of memory"
    comparing = f"comparison with routers on fewer layers: {format_bytes(router.comparing.memory)}"
    if not router.compares_depths:
        comparing = "no comparison with routers on fewer layers (router.compare_depths)"
    return [
        ("router", f"about {format_bytes(router.disk)} of features on disk; {training}"),
        ("", f"features: {format_bytes(router.features.memory)} of memory in each job"),
        ("", f"test: {format_bytes(router.testing.memory)} in each job; {comparing}"),
    ]


def _passes(train: TrainSettings) -> str:
    rows = f"{train.rows_at_once} rows at once" if train.rows_at_once else "all rows of a step at once"
    return rows + (", activations recomputed (checkpointing)" if train.recomputes else "")


def _parallel_jobs(forecast: Forecast) -> str:
    count = f"{forecast.parallel_jobs} in parallel"
    if forecast.waits_for_nodes:
        return f"{count}; no node can run one yet, the run waits for new nodes (resources.autoscaling)"
    times = "once" if forecast.base_loads == 1 else f"{forecast.base_loads} times"
    return f"{count} (limited by {forecast.limiting_resource}); the base is loaded {times}"


def _memory(memory: MemoryEstimate) -> str:
    sizes = {part: getattr(memory, part) for part in MEMORY_PARTS}
    parts = ", ".join(f"{format_bytes(size)} {part}" for part, size in sizes.items() if size)
    return f"{parts}; {format_bytes(memory.gpu)} on the GPU" if memory.gpu else parts


def _duration(seconds: float | None) -> str:
    return "unknown" if seconds is None else format_duration(seconds)
