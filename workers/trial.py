"""One trial of a search: an expert trained for a few steps and measured on the validation split, never on the test."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from workers.bench import Bench, resident
from workers.expert_job import ExpertJob, trainee_of
from workers.progress import Progress
from workers.training import fit_one


@dataclass(frozen=True)
class TrialBench:
    """A base that is loaded once for all the trials that run in this process."""

    bench: Bench

    @classmethod
    def load(cls, job: ExpertJob) -> TrialBench:
        """Set up for the base of ``job``."""
        torch.set_num_threads(job.threads)
        return cls(resident(job.base, job.device))

    def run(self, job: ExpertJob) -> dict[str, float]:
        """Train the expert of ``job``; its best validation ``accuracy`` and ``loss``, its size and ``seconds``.

        Raises TrainingFailedError.
        """
        began = time.monotonic()
        with self.bench.in_use() as bank:
            trainee = trainee_of(job, self.bench, _nobody, resumes=False)
            found = fit_one(bank, trainee, pad_id=self.bench.pad_id, report=_nobody)
        return {**found.best, "parameters": float(job.parameters), "seconds": time.monotonic() - began}


def _nobody(progress: Progress) -> None:
    """A trial reports once, at its end."""
