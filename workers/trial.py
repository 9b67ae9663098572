"""One trial of a search: train an expert for a few steps and evaluate it on the validation split, never on test."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from workers.base.resident import ResidentBase, load_resident_base
from workers.expert_job import ExpertJob, prepare_training
from workers.progress import Progress
from workers.training.loop import fit_expert


@dataclass(frozen=True)
class TrialRunner:
    """Runs trials one after another on a base that is loaded once."""

    resident_base: ResidentBase

    @classmethod
    def load(cls, job: ExpertJob) -> TrialRunner:
        """Load the base of ``job`` and set the number of threads of this process."""
        torch.set_num_threads(job.threads)
        return cls(load_resident_base(job.base, job.device))

    def run(self, job: ExpertJob) -> dict[str, float]:
        """Train the expert of ``job``.

        Returns:
            ``accuracy`` (0 to 1) and ``loss`` of the best evaluation on the validation split, ``parameters`` (trainable
            parameters of the adapter, without the head), and ``seconds`` of the whole trial.

        Raises:
            TrainingFailedError: If the training fails.
        """
        start = time.monotonic()
        with self.resident_base.in_use() as bank:
            training = prepare_training(job, self.resident_base, _ignore, resumes=False)
            fit = fit_expert(bank, training, pad_id=self.resident_base.pad_id, report=_ignore)
        return {**fit.best, "parameters": float(job.parameters), "seconds": time.monotonic() - start}


def _ignore(progress: Progress) -> None:
    """Ignore a report: a trial reports only its result."""
