"""Requests for single jobs while they run: leave one out, or try one again."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import replace

from orchestrator.pool.failure_policy import Retry
from orchestrator.pool.ray_workers import RESTARTED, WorkerHandle, request_stop
from orchestrator.pool.unit_queue import QueuedUnit
from orchestrator.pool.work_units import JobEvent, JobRequest, WorkUnit
from workers.failure import Failure

SKIPPED = Failure("skipped", "Skipped", "on request")


def apply_request(
    request: JobRequest,
    units: Sequence[WorkUnit],
    queue: list[QueuedUnit],
    workers: Sequence[WorkerHandle],
    failures: MutableMapping[str, list[Failure]],
) -> Iterator[JobEvent]:
    """Apply a request to the jobs of one call of ``WorkerPool.run``, and yield the events that follow at once.

    Args:
        request: The request.
        units: All units of the call.
        queue: Units that wait for a worker; changed in place.
        workers: The workers. One that runs the job is asked to stop its unit.
        failures: Failures of each job so far; those of a job that is tried again are forgotten.
    """
    key, skips = request.key, request.action == "skip"
    waiting = next((queued for queued in queue if key in queued.unit.jobs), None)
    worker = next((worker for worker in workers if worker.unit and key in worker.unit.jobs), None)
    unit = next((unit for unit in units if key in unit.jobs), None)
    if worker:
        request_stop(worker, {key: SKIPPED if skips else RESTARTED})
        request.answer("is stopped and left out" if skips else "is stopped and continues from its checkpoint")
    elif waiting and skips:
        others = {other: job for other, job in waiting.unit.jobs.items() if other != key}
        queue.remove(waiting)
        if others:
            queue.insert(0, QueuedUnit(replace(waiting.unit, jobs=others), waiting.not_before))
        request.answer("is left out")
        yield JobEvent(key, failure=SKIPPED, attempt=len(failures[key]) + 1, action="left out", done=True)
    elif waiting:
        waiting.not_before = time.monotonic()
        request.answer("waits for a worker")
    elif unit and failures[key] and not skips:
        failures[key].clear()
        queue.append(QueuedUnit(replace(unit, jobs={key: unit.jobs[key]})))
        request.answer("is tried again")
        yield JobEvent(key, retry=Retry(), action="retried on request")
    else:
        request.answer("has no expert that trains, waits or has failed in this run")
