"""Train the experts of several jobs together on one resident base, and hand each to a function that finishes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch

from ttmoe.base import empty_body
from workers.base.resident import ResidentBase, load_resident_base
from workers.expert_job import ExpertJob, estimate_jobs_memory, prepare_training
from workers.failure import Failure, to_failure
from workers.progress import Progress, ProgressCallback
from workers.stopwatch import Stopwatch, activity_timer
from workers.training.loop import fit_experts
from workers.training.memory_limit import MemoryLimit
from workers.training.state import ExpertTraining, FitResult

Result = TypeVar("Result")
Finish = Callable[[ExpertJob, ResidentBase, ExpertTraining, FitResult], Result]
"""Makes the result of a job from its trained expert, which is in the bank; it may raise."""


def train_jointly(
    jobs: Sequence[ExpertJob],
    report: ProgressCallback,
    finish: Finish[Result],
    outcomes: dict[str, Result | Failure],
    *,
    pauses: Mapping[str, int] | None = None,
) -> None:
    """Train the experts of jobs together and finish each.

    An error that concerns one expert is the failure of that expert only. Any other error (memory, the system) is the
    failure of every expert that has not finished.

    Args:
        jobs: Jobs with the same base and device, and with different names; none if there is nothing to do.
        report: Receives progress reports with the task as key.
        finish: Called with each expert whose training succeeded.
        outcomes: Receives the result or failure of each job by task.
        pauses: Step at which the training of a task pauses, by task, see ``ExpertTraining``.
    """
    if not jobs:
        return
    try:
        with Stopwatch().running():
            _train(jobs, report, finish, outcomes, pauses or {})
    except Exception as error:
        failure = to_failure(error)
        outcomes.update({job.task: failure for job in jobs if job.task not in outcomes})


def _train(
    jobs: Sequence[ExpertJob],
    report: ProgressCallback,
    finish: Finish[Result],
    outcomes: dict[str, Result | Failure],
    pauses: Mapping[str, int],
) -> None:
    torch.set_num_threads(jobs[0].threads)
    for job in jobs:
        report(Progress("loading", 0, job.train.steps, key=job.task))
    with activity_timer("loading", *[job.task for job in jobs]):
        resident_base = load_resident_base(jobs[0].base, jobs[0].device, jobs[0].train)
    with resident_base.in_use() as bank:
        trainings: dict[str, ExpertTraining] = {}
        for job in jobs:
            with _catch_failure(job, outcomes, resident_base):
                training = prepare_training(job, resident_base, report)
                trainings[job.task] = replace(training, pause_at=pauses.get(job.task))
        if not trainings:
            return
        prepared = [job for job in jobs if job.task in trainings]
        engine = resident_base.engine
        whole = empty_body(jobs[0].base) if engine.shards_base else bank.model
        memory_limit = MemoryLimit(estimate_jobs_memory(prepared, whole, engine.size).host)
        fits = fit_experts(
            bank,
            list(trainings.values()),
            pad_id=resident_base.pad_id,
            report=report,
            memory_limit=memory_limit,
            engine=engine,
        )
        for job in prepared:
            fit = fits[job.task]
            if isinstance(fit, Failure):
                outcomes[job.task] = fit
                continue
            with _catch_failure(job, outcomes, resident_base):
                outcomes[job.task] = finish(job, resident_base, trainings[job.task], fit)


@contextmanager
def _catch_failure(
    job: ExpertJob, outcomes: dict[str, Result | Failure], resident_base: ResidentBase
) -> Iterator[None]:
    """Record an error in the block as the failure of this job, unless other processes would go on with it."""
    try:
        yield
    except Exception as error:
        if resident_base.engine.size > 1:
            raise
        outcomes[job.task] = to_failure(error)
