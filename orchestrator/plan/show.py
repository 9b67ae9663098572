"""``ttmoe plan``: what a run would do and why, what it would take, and whether it fits. It starts no work."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.config.loading import LoadedConfig
from orchestrator.plan.forecast import Forecast, check_feasible, check_router_fits, make_forecast
from orchestrator.plan.library_state import LibraryState, StageState, read_library_state
from orchestrator.plan.nodes import available_nodes
from orchestrator.plan.planning import Plan, make_plan
from orchestrator.pool.capacity import GB, Node
from ttmoe.errors import InfeasibleError
from workers.training.memory import MemoryEstimate

if TYPE_CHECKING:
    from orchestrator.registry import Registry

MOST_ROWS = 40
PARTS = ("base", "activations", "optimizer", "process")
STATE_STYLES = {"cached": "dim", "changed": "yellow", "missing": "bold"}


def show_plan(loaded: LoadedConfig, console: Console, as_json: bool) -> None:
    """Print the plan of a config, as tables or as one JSON object.

    Writes nothing but prepared data and bases in storage.cache. Raises InputError for what cannot work, and, after the
    plan was shown, InfeasibleError for work that fits on no node.
    """
    with nullcontext() if as_json else console.status("planning: base, data, adapters"):
        plan = make_plan(loaded.config)
        registry = _registry(plan)
        standing, nodes = read_library_state(plan, registry), available_nodes()
        outlook, problem = make_forecast(plan, standing, registry, nodes), _problem(plan, standing, nodes)
    if as_json:
        console.out(json.dumps(plan_as_dict(plan, standing, outlook, problem), indent=1), highlight=False)
    else:
        _show(plan, standing, outlook, console)
    if problem:
        raise problem


def plan_as_dict(
    plan: Plan, standing: LibraryState, outlook: Forecast, problem: InfeasibleError | None
) -> dict[str, Any]:
    """The plan for programs; keys stay what they are. Memory is in bytes, times in seconds (null: no past run)."""
    return {
        "library": plan.folders.library,
        "base": {**plan.base.identity(), "folder": plan.base.folder},
        "experts": {
            task: {
                "state": standing.experts[task].state,
                "why": standing.experts[task].why,
                "step": standing.experts[task].step,
                "parameters": expert.job.parameters,
                "lora16_parameters": expert.lora_parameters,
                "spec_hash": expert.job.spec_hash,
                "memory": _bytes(outlook.memory[task]),
                "seconds": outlook.seconds[task],
            }
            for task, expert in plan.experts.items()
        },
        "orphaned": list(standing.orphaned),
        "router": _part(standing.router, plan.router_hash),
        "search": _part(standing.search, plan.search_hash),
        "resources": {
            **asdict(outlook.need),
            "experts_per_job": outlook.experts_per_job,
            "jobs": outlook.jobs,
            "at_once": outlook.at_once,
            "scarce": outlook.limiting_resource,
            "base_loads": outlook.base_loads,
            "trunk": asdict(outlook.trunk) if outlook.trunk else None,
            "router": asdict(outlook.router),
            "waits": outlook.waits,
        },
        "seconds": outlook.total,
        "infeasible": str(problem) if problem else None,
    }


def _registry(plan: Plan) -> Registry | None:
    """The store, if it is there: a plan makes none."""
    uri = plan.config.tracking_uri
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return None
    from orchestrator.registry import Registry

    return Registry.open(uri, plan.folders.artifacts)


def _problem(plan: Plan, standing: LibraryState, nodes: list[Node]) -> InfeasibleError | None:
    """Why what is to be done would wait for ever, if so. The router and the search reserve what an expert does."""
    try:
        if standing.any:
            check_feasible(plan, nodes, standing.todo)
            check_router_fits(plan, standing, nodes)
    except InfeasibleError as error:
        return error
    return None


def _bytes(memory: MemoryEstimate) -> dict[str, Any]:
    return {**asdict(memory), "total": memory.total, "host": memory.host, "gpu": memory.gpu}


def _part(part: StageState | None, spec_hash: str | None) -> dict[str, Any] | None:
    if part is None:
        return None
    return {"state": part.state, "why": part.why, "spec_hash": spec_hash, "differs": list(part.differs)}


def _show(plan: Plan, standing: LibraryState, outlook: Forecast, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    say(f"library {plan.folders.library} on {plan.base.id} ({plan.base.dtype}, sha256 {plan.base.digest[:12]})")
    console.print(_table(plan, standing, outlook))
    for line in [*_left_out(plan, standing), *_parts(standing), *_resources(plan, standing, outlook)]:
        say(line)


def _table(plan: Plan, standing: LibraryState, outlook: Forecast) -> Table:
    table = Table(box=SIMPLE_HEAD, title=_counts(standing), title_justify="left")
    table.add_column("task", overflow="fold", max_width=20)
    table.add_column("state", no_wrap=True)
    for head in ("adapter", "LoRA-16", "memory", "time"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for task in _shown(standing):
        expert, here = plan.experts[task], standing.experts[task]
        seconds = outlook.seconds[task]
        cells = [
            *(task, here.state, f"{expert.job.parameters:,}", f"{expert.lora_parameters:,}"),
            *(_size(outlook.memory[task].total), _time(seconds) if here.state != "cached" else "", here.why),
        ]
        table.add_row(*map(escape, cells), style=STATE_STYLES[here.state])
    return table


def _shown(standing: LibraryState) -> list[str]:
    """The tasks with a row of their own: all, or in a large library some of those that are to be done."""
    return list(standing.experts) if len(standing.experts) <= MOST_ROWS else standing.todo[:MOST_ROWS]


def _counts(standing: LibraryState) -> str:
    states = [expert.state for expert in standing.experts.values()]
    counts = [f"{states.count(state)} {state}" for state in STATE_STYLES if state in states]
    return f"{len(states)} experts: {', '.join(counts)}"


def _left_out(plan: Plan, standing: LibraryState) -> list[str]:
    shown = set(_shown(standing))
    more = [task for task in standing.experts if task not in shown]
    cached = sum(standing.experts[task].state == "cached" for task in more)
    parts = [f"{count:,} more {what}" for count, what in ((len(more) - cached, "to do"), (cached, "cached")) if count]
    lines = [f"... and {' and '.join(parts)}"] if parts else []
    parameters = sum(expert.job.parameters for expert in plan.experts.values())
    lora = sum(expert.lora_parameters for expert in plan.experts.values())
    lines.append(f"parameters {parameters:,} in all, heads not counted; of LoRA-16 {lora:,}")
    if standing.orphaned:
        few, rest = ", ".join(standing.orphaned[:10]), len(standing.orphaned) - 10
        names = few + (f" and {rest} more" if rest > 0 else "")
        lines.append(f"orphaned   {names}: in the registry, not in the config; left alone")
    return lines


def _parts(standing: LibraryState) -> list[str]:
    lines = [f"router     {standing.router.state}: {standing.router.why}"]
    return lines + ([f"search     {standing.search.state}: {standing.search.why}"] if standing.search else [])


def _resources(plan: Plan, standing: LibraryState, outlook: Forecast) -> list[str]:
    if not standing.any:
        return ["to do      nothing"]
    need = outlook.need
    gpus = f", {need.gpus:g} GPUs" if need.gpus else ""
    lines = [f"a job      {need.cpus:g} CPUs{gpus}, {_size(need.memory)} of memory"]
    if standing.todo:
        largest = max(standing.todo, key=lambda task: outlook.memory[task].total)
        lines += [f"memory     {_memory(outlook.memory[largest])}", f"           in {largest}, the largest"]
        each = "one expert each" if outlook.experts_per_job == 1 else f"{outlook.experts_per_job} experts each"
        lines += [f"jobs       {outlook.jobs} of {each}, {_at_once(outlook)}"]
    if outlook.trunk:
        kept = "" if outlook.trunk.fits else f": more than storage.trunk_gb ({plan.config.storage.trunk_gb:g})"
        about = f"about {_size(outlook.trunk.bytes)} on disk{kept}"
        lines.append(f"trunk      {about}; steps skip {outlook.trunk.share:.0%} of the base's layers")
    if standing.router.state != "cached":
        disk, memory = _size(outlook.router.disk), _size(outlook.router.memory)
        lines.append(f"router     about {disk} of features on disk, {memory} of memory to make it")
        if not outlook.router.compares_depths:
            lines.append("           not compared with routers of fewer layers (router.compare_depths)")
    time = f"about {_time(outlook.total)} for the experts" if outlook.total is not None else "no past run tells"
    return [*lines, f"time       {time}"] if standing.todo else lines


def _at_once(outlook: Forecast) -> str:
    if outlook.waits:
        return f"{outlook.at_once} at a time once there are nodes: none has room yet (resources.autoscaling waits)"
    loads = f"{outlook.base_loads} {'load' if outlook.base_loads == 1 else 'loads'} of the base"
    return f"{outlook.at_once} at a time (as the {outlook.limiting_resource} allows), {loads}"


def _memory(memory: MemoryEstimate) -> str:
    parts = ", ".join(f"{_size(getattr(memory, part))} {part}" for part in PARTS)
    return f"{parts}; {_size(memory.gpu)} on the GPU" if memory.gpu else parts


def _size(size: int) -> str:
    if size >= GB:
        return f"{size / GB:.1f} GB"
    return f"{size / 10**6:.0f} MB" if size >= 10**6 else f"{size / 1000:.0f} kB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
