"""JSON form of a plan, printed by ``ttmoe plan --json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from orchestrator.plan.forecast import Forecast
from orchestrator.plan.library_state import LibraryState, StageState
from orchestrator.plan.planning import Plan
from ttmoe.errors import InfeasibleError
from workers.training.memory import MemoryEstimate


def plan_as_dict(
    plan: Plan, state: LibraryState, forecast: Forecast, problem: InfeasibleError | None
) -> dict[str, Any]:
    """Return a plan as JSON values; other programs depend on its keys, so they do not change.

    Args:
        plan: The plan.
        state: State of the library.
        forecast: Forecast of the work.
        problem: Why the work does not fit the nodes, or None.

    Returns:
        Values ready for JSON. Memory and disk space are in bytes, times in seconds or None if unknown.
    """
    return {
        "library": plan.folders.library,
        "base": {**plan.base.record(), "folder": plan.base.folder},
        "experts": {
            task: {
                "state": state.experts[task].state,
                "why": state.experts[task].reason,
                "step": state.experts[task].step,
                "parameters": expert.job.parameters,
                "lora16_parameters": expert.lora_parameters,
                "spec_hash": expert.job.spec_hash,
                "rows": expert.job.data.rows,
                "removed_rows": expert.job.data.removed,
                "cut_share": expert.cut_share,
                "micro_batch": expert.job.train.rows_at_once,
                "checkpointing": expert.job.train.recomputes,
                "memory": _memory_as_dict(forecast.memory[task]),
                "seconds": forecast.expert_seconds[task],
            }
            for task, expert in plan.experts.items()
        },
        "nodes": [asdict(node) for node in plan.nodes],
        "orphaned": list(state.orphaned),
        "router": _stage_as_dict(state.router, plan.router_hash),
        "search": _stage_as_dict(state.search, plan.search_hash),
        "resources": {
            **asdict(forecast.job_resources),
            "experts_per_job": forecast.experts_per_job,
            "jobs": forecast.jobs,
            "at_once": forecast.parallel_jobs,
            "scarce": forecast.limiting_resource,
            "base_loads": forecast.base_loads,
            "trunk": asdict(forecast.trunk) if forecast.trunk else None,
            "router": asdict(forecast.router),
            "waits": forecast.waits_for_nodes,
            "engine": plan.engine.engine,
            "deepspeed": plan.engine.deepspeed.model_dump() if plan.engine.engine == "deepspeed" else None,
            "shards": [asdict(sizes) for sizes in forecast.shards],
        },
        "seconds": forecast.total_seconds,
        "infeasible": str(problem) if problem else None,
    }


def _memory_as_dict(memory: MemoryEstimate) -> dict[str, Any]:
    return {**asdict(memory), "total": memory.total, "host": memory.host, "gpu": memory.gpu}


def _stage_as_dict(stage: StageState | None, spec_hash: str | None) -> dict[str, Any] | None:
    if stage is None:
        return None
    return {"state": stage.state, "why": stage.reason, "spec_hash": spec_hash, "differs": list(stage.changed_tasks)}
