"""One trial of a search: an expert trained for a few steps and measured on the validation split, never on the test."""

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
    """A base that is loaded once for all the trials that run in this process."""

    bench: ResidentBase

    @classmethod
    def load(cls, job: ExpertJob) -> TrialRunner:
        """Set up for the base of ``job``."""
        torch.set_num_threads(job.threads)
        return cls(load_resident_base(job.base, job.device))

    def run(self, job: ExpertJob) -> dict[str, float]:
        """Train the expert of ``job``; its best validation ``accuracy`` and ``loss``, its size and ``seconds``.

        Raises TrainingFailedError.
        """
        began = time.monotonic()
        with self.bench.in_use() as bank:
            trainee = prepare_training(job, self.bench, _nobody, resumes=False)
            found = fit_expert(bank, trainee, pad_id=self.bench.pad_id, report=_nobody)
        return {**found.best, "parameters": float(job.parameters), "seconds": time.monotonic() - began}


def _nobody(progress: Progress) -> None:
    """A trial reports once, at its end."""
