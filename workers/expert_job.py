"""Experts from start to finish, one or several on one base: data, training, files, verification, the test split."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ttmoe.adapter import AdapterSpec, count_parameters
from ttmoe.bank import Bank
from ttmoe.base import Base
from ttmoe.expert_files import load_expert, save_expert
from workers.base.resident import ResidentBase, count_base_loads, load_resident_base
from workers.cache.tokens import load_tokenized_rows
from workers.cache.trunk_states import load_or_compute_trunk
from workers.data.prepared import PreparedTask
from workers.expert_result import EXPERT_RESULT_FILE, ExpertResult, finished_result, write_result
from workers.failure import Failure, to_failure
from workers.progress import Progress, ProgressCallback
from workers.training.batches import TokenizedRows
from workers.training.checkpoints import CheckpointFolder
from workers.training.evaluation import evaluate, expert_scores
from workers.training.loop import TrainingFailedError, fit_experts
from workers.training.memory import MemoryEstimate, estimate_job_memory
from workers.training.memory_limit import MemoryLimit
from workers.training.settings import TrainSettings
from workers.training.state import ExpertTraining, FitResult

__all__ = [
    "EXPERT_RESULT_FILE",
    "ExpertJob",
    "ExpertResult",
    "VerificationError",
    "finished_result",
    "run_expert",
    "run_experts",
]
PROBES = 8
COPY = "reloaded copy"


class VerificationError(RuntimeError):
    """An expert that was saved does not come back as it was trained; it must not be registered."""


@dataclass(frozen=True)
class ExpertJob:
    """All that decides one expert, and where it is written.

    ``folder`` gets the two expert files, the result and, until it is there, checkpoints. ``cache`` is the root of what
    jobs share (empty: this job shares nothing); ``trunk_bytes`` is how much of it trunk states may take.
    """

    task: str
    base: Base
    data: PreparedTask
    adapter: AdapterSpec
    head: str
    train: TrainSettings
    spec_hash: str
    parameters: int
    folder: str
    threads: int = 1
    device: str = "cpu"
    cache: str = ""
    trunk_bytes: int = 0

    @property
    def classes(self) -> int:
        """The head's number of outputs; none where text is written."""
        return 1 if self.data.kind == "choice" else len(self.data.label_names)

    @property
    def options(self) -> int:
        """Sequences that a row makes: those of a choice."""
        return len(self.data.label_names) if self.data.kind == "choice" else 1

    @property
    def cache_folder(self) -> Path:
        """Where tokens and trunk states are kept."""
        return Path(self.cache or f"{self.folder}.cache")

    @property
    def checkpoints(self) -> CheckpointFolder:
        """Where the training stands."""
        return CheckpointFolder(Path(self.folder, "checkpoints"), self.spec_hash)


def run_experts(jobs: Sequence[ExpertJob], report: ProgressCallback) -> dict[str, ExpertResult | Failure]:
    """Train, save, verify and test the experts together; what came of each, by task. Reports carry the task as key.

    All jobs have the same base and device. An expert that is finished already is not trained again, and one that was
    stopped goes on. An error in one expert's own part is its failure alone; what goes wrong around them (memory, the
    system) is that of every expert which has not finished.
    """
    outcomes: dict[str, ExpertResult | Failure] = {}
    for job in jobs:
        if found := finished_result(Path(job.folder), job.spec_hash):
            outcomes[job.task] = found
            job.checkpoints.remove()
    missing = [job for job in jobs if job.task not in outcomes]
    if missing:
        try:
            _run(missing, report, outcomes)
        except Exception as error:
            failure = to_failure(error)
            outcomes |= {job.task: failure for job in missing if job.task not in outcomes}
    return {job.task: outcomes[job.task] for job in jobs}


def run_expert(job: ExpertJob, report: ProgressCallback) -> ExpertResult:
    """The same for one. Raises TrainingFailedError."""
    found = run_experts((job,), report)[job.task]
    if isinstance(found, Failure):
        raise TrainingFailedError(found)
    return found


def _run(jobs: Sequence[ExpertJob], report: ProgressCallback, outcomes: dict[str, ExpertResult | Failure]) -> None:
    torch.set_num_threads(jobs[0].threads)
    for job in jobs:
        report(Progress("loading", 0, job.train.steps, key=job.task))
    began, loads = time.monotonic(), count_base_loads()
    bench = load_resident_base(jobs[0].base, jobs[0].device)
    loaded = {job.task: float(count_base_loads() - loads if job is jobs[0] else 0) for job in jobs}
    with bench.in_use() as bank:
        trainees = {}
        for job in jobs:
            try:
                trainees[job.task] = prepare_training(job, bench, report)
            except Exception as error:
                outcomes[job.task] = to_failure(error)
        fits: dict[str, FitResult | Failure] = {}
        if trainees:  # of the others nobody knows what they would take
            planned = estimate_jobs_memory([job for job in jobs if job.task in trainees], bank.model)
            fits = fit_experts(bank, list(trainees.values()), pad_id=bench.pad_id, report=report,
                       allowance=MemoryLimit(planned.host))  # fmt: skip
        for job in [job for job in jobs if job.task in fits]:
            try:
                found = fits[job.task]
                metrics = {"base_loads": loaded[job.task]}
                answer = max((item.answer for item in trainees[job.task].train.items), default=0)
                outcomes[job.task] = (
                    found if isinstance(found, Failure) else _finish(job, bench, found, metrics, began, report, answer)
                )
            except Exception as error:
                outcomes[job.task] = to_failure(error)


def estimate_jobs_memory(jobs: Sequence[ExpertJob], model: nn.Module) -> MemoryEstimate:
    """What the largest of these jobs, trained together on this body of their base, is planned to take."""
    found = [
        estimate_job_memory(model, job.base, job.adapter, job.classes, job.train, options=job.options, experts=len(jobs),
                   device=job.device)
        for job in jobs
    ]  # fmt: skip
    return max(found, key=lambda memory: memory.total)


def prepare_training(
    job: ExpertJob, bench: ResidentBase, report: ProgressCallback, *, resumes: bool = True
) -> ExpertTraining:
    """The job's expert, put into the bank, with its rows."""
    draw = torch.Generator().manual_seed(job.train.seed or 0)
    bench.bank.add(job.task, job.adapter, job.classes, draw, random_head=job.head == "frozen")
    train, validation = (load_rows(job, bench, split, report) for split in ("train", "validation"))
    return ExpertTraining(job.task, train, validation, job.train, job.head, job.checkpoints if resumes else None)


def load_rows(job: ExpertJob, bench: ResidentBase, split: str, report: ProgressCallback) -> TokenizedRows:
    """A split's tokens, and its trunk states where the job keeps them; the job's expert is in the bank."""
    rows = load_tokenized_rows(job.base, bench.tokenizer, job.data, split, job.cache_folder)
    depth = bench.bank.expert(job.task).adapter.lowest
    if not depth or not job.trunk_bytes:
        return rows

    def keyed(progress: Progress) -> None:
        report(replace(progress, key=job.task))

    states = load_or_compute_trunk(bench.bank, rows, base=job.base, fingerprint=job.data.fingerprint, split=split, depth=depth,
                        pad_id=bench.pad_id, cache=job.cache_folder, budget=job.trunk_bytes, report=keyed)  # fmt: skip
    return replace(rows, states=states)


def _finish(job: ExpertJob, bench: ResidentBase, found: FitResult, metrics: dict[str, float], began: float,
            report: ProgressCallback, answer_tokens: int) -> ExpertResult:  # fmt: skip
    """Test, save, verify; the result comes last, and then there is nothing to resume."""
    testing = partial(report, Progress("testing", found.steps, job.train.steps, key=job.task))
    testing()
    rows = load_rows(job, bench, "test", report)
    tested = evaluate(bench.bank, job.task, rows, bench.pad_id, testing)
    metrics |= found.metrics() | {f"test.{key}": value for key, value in tested.items()}
    report(Progress("verifying", found.steps, job.train.steps, key=job.task))
    digest = _save_and_verify(job, bench.bank, rows, metrics, bench.pad_id, answer_tokens)
    metrics["seconds.job"] = time.monotonic() - began
    result = ExpertResult(job.task, job.spec_hash, metrics, job.parameters, digest, job.folder)
    write_result(result)
    job.checkpoints.remove()
    return result


def _save_and_verify(job: ExpertJob, bank: Bank, probes: TokenizedRows, metrics: dict[str, float], pad_id: int,
                     answer_tokens: int) -> str:  # fmt: skip
    """Write the files, load them again beside the expert, and compare: count, finiteness, outputs to the last bit."""
    expert, folder = bank.expert(job.task), Path(job.folder)
    manifest = save_expert(expert, folder, task=job.task, kind=job.data.kind, labels=job.data.label_names,
                           base=job.base.identity(), spec_hash=job.spec_hash, metrics=metrics,
                           answer_tokens=answer_tokens)  # fmt: skip
    if count_parameters(expert.adapter.groups) != job.parameters:
        raise VerificationError(f"{job.task}: {manifest.parameters} parameters were trained, {job.parameters} planned")
    load_expert(bank, folder, job.base.digest, name=COPY)
    try:
        rows = TokenizedRows(probes.items[:PROBES], probes.labels[:PROBES])
        before, after = (expert_scores(bank, name, rows, pad_id) for name in (job.task, COPY))
    finally:
        bank.remove(COPY)
    if not all(torch.equal(a, b) and torch.isfinite(a).all() for a, b in zip(before, after, strict=True)):
        raise VerificationError(
            f"{job.task}: the saved expert answers {PROBES} probe rows differently, or not finitely"
        )
    return manifest.weights_digest
