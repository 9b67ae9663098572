"""One trial of a search: an expert trained for a few steps and measured on the validation split, never on the test."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import pad_id_of
from workers.batches import Rows, tokenise
from workers.expert_job import ExpertJob
from workers.prepared import load_split
from workers.progress import Progress
from workers.training import fit


@dataclass
class TrialBench:
    """A base and a task's rows, loaded once for all the trials that run in this process."""

    bank: Bank
    rows: dict[str, Rows]
    pad_id: int

    @classmethod
    def load(cls, job: ExpertJob) -> TrialBench:
        """Set up for the task and base of ``job``."""
        torch.set_num_threads(job.threads)
        bank, tokenizer = Bank(load_body(job.base, job.device), job.base.pooling), load_tokenizer(job.base)
        rows = {
            split: tokenise(tokenizer, load_split(job.data, split), job.base.max_length)
            for split in ("train", "validation")
        }
        return cls(bank, rows, pad_id_of(tokenizer))

    def run(self, job: ExpertJob) -> dict[str, float]:
        """Train the expert of ``job``; its best validation ``accuracy`` and ``loss``, its size and ``seconds``."""
        began = time.monotonic()
        self.bank.add(
            "trial",
            job.adapter,
            job.classes,
            torch.Generator().manual_seed(job.train.seed or 0),
            random_head=job.head == "frozen",
        )
        try:
            found = fit(
                self.bank,
                "trial",
                self.rows["train"],
                self.rows["validation"],
                job.train,
                head=job.head,
                pad_id=self.pad_id,
                report=_nobody,
            )
        finally:
            self.bank.remove("trial")
        return {**found.best, "parameters": float(job.parameters), "seconds": time.monotonic() - began}


def _nobody(progress: Progress) -> None:
    """A trial reports once, at its end."""
