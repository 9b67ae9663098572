"""Stage 1: every expert that is not registered yet is trained in a unit of work, and registered as it ends."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator.plan.packing import pack_jobs
from orchestrator.plan.planning import Plan
from orchestrator.pool.work_units import LOG_FILE, JobEvent, JobRunner, WorkUnit, run_jointly
from orchestrator.progress.live_view import LiveView
from orchestrator.recording.recorder import Recorder
from orchestrator.recording.registrar import STAGE, Registrar, Stage1Result
from orchestrator.registry import Registry, is_unavailable
from workers.expert_job import ExpertJob, finished_result, run_experts


def train_experts(
    plan: Plan,
    missing: Sequence[str],
    registry: Registry,
    parent: str,
    runner: JobRunner,
    view: LiveView,
    together: int,
    found: Stage1Result,
) -> None:
    """Train and register the ``missing`` experts, ``together`` of them in a job; fills ``found`` as it goes.

    An expert's failure leaves the others alone; where the first ones fail alike, the rest is not tried. Interrupted, it
    marks the open runs KILLED. Raises WorkFailedError where the store was away for too long; nothing finished is lost.
    """
    view.stage(STAGE, "expert", {task: expert.job.train.steps for task, expert in plan.experts.items()})
    for task in plan.experts.keys() - set(missing):
        view.state(task, "cached")
    with Recorder(is_unavailable, plan.config.failures.tracking_minutes * 60) as recorder:
        desk = Registrar(plan, registry, parent, recorder, view, found)
        try:
            jobs = {task: plan.experts[task].job for task in missing}
            for task, job in list(jobs.items()):
                if result := finished_result(Path(job.folder), job.spec_hash):
                    desk.register(task, result)
                    del jobs[task]
            with closing(_running(runner, jobs, together)) as running:
                for news in running:
                    desk.take(news)
                    if found.stopped:
                        break
            desk.wait()
        finally:
            desk.close()


def make_work_units(jobs: dict[str, ExpertJob], together: int) -> list[WorkUnit]:
    """A unit for each pack of jobs; its log lies with the first expert."""
    packs = pack_jobs(jobs, together)
    logs = [Path(next(iter(pack.values())).folder, LOG_FILE) for pack in packs]
    return [WorkUnit(partial(run_jointly, run_experts), pack, log) for pack, log in zip(packs, logs, strict=True)]


def with_half_micro_batch(job: ExpertJob) -> ExpertJob | None:
    """The same job with half as many rows in the model at once; None where that is one already."""
    rows = job.train.micro_batch or job.train.batch_size
    if rows == 1:
        return None
    return replace(job, train=job.train.model_copy(update={"micro_batch": math.ceil(rows / 2)}))


def _running(runner: JobRunner, jobs: dict[str, ExpertJob], together: int) -> Generator[JobEvent | None, None, None]:
    if jobs:
        yield from runner.run(make_work_units(jobs, together), with_half_micro_batch)
