"""The trials of a search in one process: train several points of a task together up to a rung, and validate them.

A trial never sees the test split. It saves a checkpoint at each rung, from which it resumes if it is continued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.base.resident import ResidentBase
from workers.expert_job import ExpertJob
from workers.failure import Failure
from workers.joint_training import train_jointly
from workers.progress import ProgressCallback
from workers.training.state import ExpertTraining, FitResult


@dataclass(frozen=True)
class TrialJob:
    """A trial, and the rung up to which it is trained.

    Attributes:
        expert: The training. Its ``task`` is the name of the trial, because several trials of a task share a bank.
        rung: Number of steps at which the training pauses; it resumes from there when the trial is continued.
    """

    expert: ExpertJob
    rung: int


@dataclass(frozen=True)
class TrialResult:
    """The state of a trial at a rung.

    Attributes:
        steps: Optimizer steps taken so far.
        accuracy: Accuracy of the best evaluation on the validation split so far, 0 to 1.
        loss: Mean cross-entropy of that evaluation.
        seconds: Training time so far, over all attempts.
        ended: Whether the training has ended: all steps are taken, or early stopping ended it.
    """

    steps: int
    accuracy: float
    loss: float
    seconds: float
    ended: bool


def run_trials(jobs: Sequence[TrialJob], report: ProgressCallback) -> dict[str, TrialResult | Failure]:
    """Train trials together, each up to its rung.

    A trial that fails by its own fault, such as one that diverges, does not affect the others.

    Args:
        jobs: Trials with the same base and device, each with a name of its own.
        report: Receives progress reports with the name of the trial as key.

    Returns:
        The ``TrialResult`` or ``Failure`` of each trial by name.
    """
    outcomes: dict[str, TrialResult | Failure] = {}
    pauses = {job.expert.task: job.rung for job in jobs}
    train_jointly([job.expert for job in jobs], report, _result, outcomes, pauses=pauses)
    return outcomes


def _result(job: ExpertJob, _: ResidentBase, training: ExpertTraining, fit: FitResult) -> TrialResult:
    ended = fit.steps >= job.train.steps or fit.steps < (training.pause_at or job.train.steps)
    if ended:
        job.checkpoints.remove()
    return TrialResult(fit.steps, fit.best["accuracy"], fit.best["loss"], fit.seconds, ended)
