"""Row ``engines``: what several processes cost beside one, on a base so small that nothing else is seen.

Ten experts, one after another, through the pool on Ray: in one process, and in a group of two with ``ddp`` and with
ZeRO 2 and 3. The processes share the cores that one has. Beyond its training, an expert takes the start of its job, its
tokens, its test, and the verified files.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import QUICK, duration
from tests.benchmarks.table import Finding

COUNT = 3 if os.environ.get(QUICK) else 10
STEPS = 20 if os.environ.get(QUICK) else 100
BEYOND = 0.5  # goal: seconds of an expert beyond its training


def run() -> Iterator[Finding]:
    from workers.training.settings import ZeroSettings

    with tempfile.TemporaryDirectory() as scratch:
        jobs = _jobs(Path(scratch))
        alone = _train(jobs, "torch", ZeroSettings(), 1)
        yield _finding("one process", alone, alone)
        for name, engine, stage in (("ddp", "ddp", 3), ("ZeRO 2", "deepspeed", 2), ("ZeRO 3", "deepspeed", 3)):
            yield _finding(f"{name}, two processes", _train(jobs, engine, _divided(stage), 2), alone)


def _divided(stage: Any) -> Any:
    from workers.training.settings import ZeroSettings

    return ZeroSettings(stage=stage, param_persistence_threshold=0)


def _finding(name: str, found: dict[str, float], alone: dict[str, float]) -> Finding:
    beyond = (found["all"] - found["training"]) / (COUNT - 1)
    what = f"{COUNT} experts of {STEPS} steps on a base of 77,000 weights, {name}: an expert beyond its training"
    step, step_alone = (each["training"] / (COUNT - 1) / STEPS for each in (found, alone))
    loads = f"{found['loads']:.0f} load(s); a step {1000 * step:.1f} ms, in one process {1000 * step_alone:.1f} ms"
    return Finding(what, duration(beyond), loads, "", f"≤ {BEYOND} s", round(beyond, 1) <= BEYOND)


def _jobs(folder: Path) -> list[Any]:
    """Return jobs of one task under different names."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny
    import tiny_causal

    from ttmoe.adapter import AdapterSpec, count_parameters
    from ttmoe.bank import Bank
    from ttmoe.base import load_body
    from workers.base.base_sources import resolve_base
    from workers.data.prepared import prepare_task
    from workers.data.task import Task
    from workers.expert_job import ExpertJob
    from workers.training.settings import TrainSettings

    base = resolve_base(folder=str(tiny_causal.save_causal_base(folder / "base")), cache=folder / "cache",
                        dtype="float32", max_length=16)  # fmt: skip
    task = Task.model_validate(tiny.text_task(tiny.write_texts(folder / "rows.jsonl", tiny.COLOURS, "north")))
    data, spec = prepare_task("colours", task, folder / "data"), AdapterSpec(rank=4, first_layer=1)
    parameters = count_parameters(Bank(load_body(base), base.pooling).build_expert(spec, 3).adapter.groups)
    train = TrainSettings(steps=STEPS, eval_every=STEPS, batch_size=16, seed=1)
    return [ExpertJob(f"expert {number}", base, data, spec, "trained", train, "ab" * 32, parameters, str(folder))
            for number in range(COUNT)]  # fmt: skip


def _train(jobs: list[Any], engine: str, zero: Any, processes: int) -> dict[str, float]:
    """Return seconds of all experts but the first, those of their trainings, and how often the base was loaded."""
    from cluster.local import ray_session
    from orchestrator.config.runtime_sections import FailureSettings
    from orchestrator.pool.capacity import JobResources
    from orchestrator.pool.work_units import WorkUnit
    from orchestrator.pool.worker_pool import WorkerPool

    def work(jobs: Any, report: Any) -> dict[str, Any]:  # pickled by value: workers cannot import this file
        from workers.expert_runner import run_experts

        return run_experts(tuple(jobs.values()), report)

    units = []
    for job in jobs:
        folder = Path(job.folder, f"{engine} {zero.stage} {processes}", job.task)
        train = job.train.model_copy(update={"engine": engine, "deepspeed": zero})
        units.append(WorkUnit(work, {job.task: replace(job, train=train, folder=str(folder))}, folder / "log.txt"))
    resources, ends, metrics = JobResources(cpus=1 / processes, processes=processes), [], []
    with ray_session(), WorkerPool(resources, FailureSettings(), max_workers=1) as pool:
        for event in pool.run(units):
            if event and event.done:
                if event.failure:
                    raise RuntimeError(str(event.failure))
                ends.append(time.monotonic())
                metrics.append(event.result.metrics)
    later = metrics[1:]  # the first loads the base
    training = sum(each["seconds.training"] for each in later)
    return {"all": ends[-1] - ends[0], "training": training, "loads": sum(each["base_loads"] for each in metrics)}
