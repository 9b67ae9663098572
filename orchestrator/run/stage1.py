"""Stage 1: train the missing experts in work units and register each one when it is trained."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from orchestrator.plan.packing import pack_jobs
from orchestrator.plan.planning import Plan
from orchestrator.pool.less_memory import with_half_micro_batch
from orchestrator.pool.work_units import LOG_FILE, JobEvent, JobRunner, WorkUnit, run_jointly
from orchestrator.progress.live_view import LiveView
from orchestrator.recording.expert_operations import ExpertOperations
from orchestrator.recording.recorder import Recorder
from orchestrator.recording.registrar import STAGE, Registrar, Stage1Result
from orchestrator.recording.request_inbox import RequestInbox
from orchestrator.registry import Registry
from workers.expert_job import ExpertJob
from workers.expert_result import finished_result
from workers.expert_runner import run_experts


def train_experts(
    plan: Plan,
    missing: Sequence[str],
    registry: Registry,
    parent: str,
    runner: JobRunner,
    view: LiveView,
    experts_per_unit: int,
    stage_result: Stage1Result,
    gone: Collection[str] = (),
) -> None:
    """Train and register the missing experts.

    The failure of one expert does not affect the others. If the first experts fail alike, the others are not tried.
    On an interruption, open runs end as KILLED.

    Args:
        plan: The plan.
        missing: Tasks whose experts are missing.
        registry: An open registry without retries.
        parent: Run id of the ``ttmoe run``.
        runner: Runs the work units.
        view: Shows the progress.
        experts_per_unit: Largest number of experts that one process trains together.
        stage_result: Receives the versions, failures and incidents.
        gone: Tasks among ``missing`` whose experts have a version without files, which is replaced.

    Raises:
        WorkFailedError: The store stayed unavailable. Trained experts are kept on disk.
    """
    view.start_stage(STAGE, "expert", {task: expert.job.train.steps for task, expert in plan.experts.items()})
    for task in plan.experts.keys() - set(missing):
        view.set_state(task, "cached")
    operations = ExpertOperations(plan, registry, parent, stage_result.logs)
    with Recorder(plan.config.failures.tracking_minutes * 60) as recorder:
        registrar = Registrar(operations, recorder, view, stage_result)
        try:
            recorder.add("read", partial(operations.read_state, missing, gone))
            jobs = {task: plan.experts[task].job for task in missing}
            for task, job in list(jobs.items()):
                if result := finished_result(Path(job.folder), job.spec_hash):
                    stage_result.found.add(task)
                    registrar.register(task, result)
                    del jobs[task]
            units = make_work_units(jobs, experts_per_unit)
            stage_result.logs.update({task: unit.log for unit in units for task in unit.jobs})
            with (
                RequestInbox(registry, parent) as inbox,
                closing(_run_units(runner, units, inbox)) as events,
            ):
                for event in events:
                    registrar.handle_event(event)
                    if stage_result.stopped:
                        break
            registrar.wait_until_recorded()
        finally:
            registrar.stop_open_runs()


def make_work_units(jobs: dict[str, ExpertJob], experts_per_unit: int) -> list[WorkUnit]:
    """Return work units of up to ``experts_per_unit`` jobs each, with the log in the folder of the first job."""
    packs = pack_jobs(jobs, experts_per_unit)
    logs = [Path(next(iter(pack.values())).folder, LOG_FILE) for pack in packs]
    return [WorkUnit(partial(run_jointly, run_experts), pack, log) for pack, log in zip(packs, logs, strict=True)]


def _run_units(runner: JobRunner, units: list[WorkUnit], inbox: RequestInbox) -> Generator[JobEvent | None, None, None]:
    if units:
        yield from runner.run(units, with_half_micro_batch, requests=inbox.take)
