"""Run expert jobs that share a base: train, save and verify the experts, and evaluate them on the test split."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ttmoe.adapter import count_parameters
from ttmoe.expert_files import load_expert
from workers.base.resident import ResidentBase, count_base_loads
from workers.expert_job import ExpertJob, load_rows, save_trained
from workers.expert_result import CUT_ROWS, HEAD_PARAMETERS, ExpertResult, finished_result, write_result
from workers.failure import Failure
from workers.generated_score import generated_score
from workers.joint_training import train_jointly
from workers.progress import Progress, ProgressCallback
from workers.stopwatch import activity_timer, current_stopwatch
from workers.training.batches import TokenizedRows
from workers.training.evaluation import accuracy_and_loss, expert_scores, last_batch_scores
from workers.training.loop import TrainingFailedError
from workers.training.state import ExpertTraining, FitResult

_RELOADED = "reloaded copy"  # name of the expert that is loaded from the saved files

Outcomes = dict[str, ExpertResult | Failure]


class VerificationError(RuntimeError):
    """A saved expert differs from the trained one; it must not be registered."""


def run_experts(jobs: Sequence[ExpertJob], report: ProgressCallback) -> Outcomes:
    """Train, save, verify and test experts together.

    A finished expert is not trained again; an interrupted one resumes from its checkpoint. An error that concerns one
    expert is the failure of that expert only. Any other error (memory, the system) is the failure of every expert that
    has not finished.

    Args:
        jobs: Jobs with the same base and device.
        report: Receives progress reports with the task as key.

    Returns:
        The result or failure of each job by task, in the order of ``jobs``.
    """
    outcomes: Outcomes = {}
    for job in jobs:
        if result := finished_result(Path(job.folder), job.spec_hash):
            outcomes[job.task] = result
            job.checkpoints.remove()
    unfinished = [job for job in jobs if job.task not in outcomes]
    start, loads_before = time.monotonic(), count_base_loads()

    def finish(job: ExpertJob, resident_base: ResidentBase, training: ExpertTraining, fit: FitResult) -> ExpertResult:
        loads = count_base_loads() - loads_before if job is unfinished[0] else 0
        answer_tokens = training.train.longest_answer
        cut = sum(_cut_rows(rows, job.base.max_length) for rows in (training.train, training.validation))
        metrics = {"base_loads": float(loads), CUT_ROWS: float(cut)}
        return _finish(job, resident_base, fit, metrics, start, answer_tokens, report)

    train_jointly(unfinished, report, finish, outcomes)
    return {job.task: outcomes[job.task] for job in jobs}


def run_expert(job: ExpertJob, report: ProgressCallback) -> ExpertResult:
    """Train, save, verify and test one expert as ``run_experts`` does.

    Raises:
        TrainingFailedError: If any part of the job fails.
    """
    outcome = run_experts((job,), report)[job.task]
    if isinstance(outcome, Failure):
        raise TrainingFailedError(outcome)
    return outcome


def _finish(
    job: ExpertJob,
    resident_base: ResidentBase,
    fit: FitResult,
    metrics: dict[str, float],
    start: float,
    answer_tokens: int,
    report: ProgressCallback,
) -> ExpertResult:
    """Test, save and verify the expert. The result is written last; after it the checkpoints are not needed."""
    report_testing = partial(report, Progress("testing", fit.steps, job.train.steps, key=job.task))
    report_testing()
    bank, pad_id = resident_base.bank, resident_base.pad_id
    engine = resident_base.engine
    rows = load_rows(job, resident_base, "test", report)
    with activity_timer("evaluation", job.task):
        scores = expert_scores(bank.eval(), job.task, rows, pad_id, on_batch=report_testing, engine=engine)
    test_metrics = accuracy_and_loss(scores, rows.labels, rows.last_answers)
    metrics[CUT_ROWS] += _cut_rows(rows, job.base.max_length)
    metrics[HEAD_PARAMETERS] = float(sum(p.numel() for p in bank.expert(job.task).head.parameters()))
    if job.scorer:
        with activity_timer("evaluation", job.task):
            metrics["test.score"] = generated_score(job, resident_base, answer_tokens, report_testing)
    metrics |= fit.metrics() | {f"test.{key}": value for key, value in test_metrics.items()}
    report(Progress("verifying", fit.steps, job.train.steps, key=job.task))
    with activity_timer("saving", job.task):
        digest = _save_and_verify(job, resident_base, rows, scores, metrics, answer_tokens)
    metrics |= {f"seconds.{name}": seconds for name, seconds in current_stopwatch().seconds(job.task).items()}
    metrics["seconds.job"] = time.monotonic() - start
    result = ExpertResult(job.task, job.spec_hash, metrics, job.parameters, digest, job.folder)
    if engine.rank == 0:
        write_result(result)
        job.checkpoints.remove()
    return result


def _cut_rows(rows: TokenizedRows, max_length: int) -> int:
    """Return the rows that fill ``max_length`` tokens: cut there, but for those that are exactly as long."""
    return sum(length >= max_length for length in rows.lengths)


def _save_and_verify(
    job: ExpertJob,
    resident_base: ResidentBase,
    rows: TokenizedRows,
    scores: list[Tensor],
    metrics: dict[str, float],
    answer_tokens: int,
) -> str:
    """Save the expert, load the files again, and return the digest of the weights.

    Raise VerificationError if the number of parameters is not the planned one, or if the scores of the loaded expert on
    the last batch of the rows are not finite or not, bit by bit, those among ``scores``. Process 0 saves and compares;
    it has also computed the scores of that batch.
    """
    bank, engine = resident_base.bank, resident_base.engine
    expert, folder = bank.expert(job.task), Path(job.folder)
    manifest = engine.from_first(lambda: save_trained(job, expert, folder, job.spec_hash, metrics, answer_tokens))
    if count_parameters(expert.adapter.groups) != job.parameters:
        raise VerificationError(f"{job.task}: {manifest.parameters} parameters were trained, {job.parameters} planned")
    load_expert(bank, folder, job.base.digest, name=_RELOADED)
    try:
        reloaded = last_batch_scores(bank, _RELOADED, rows, resident_base.pad_id)
    finally:
        bank.remove(_RELOADED)
    equal = all(torch.equal(scores[row], found) and found.isfinite().all() for row, found in reloaded.items())
    if engine.rank == 0 and not equal:
        raise VerificationError(
            f"{job.task}: the saved expert gives other or non-finite scores on one of {len(reloaded)} test rows"
        )
    return manifest.weights_digest
