"""An expert job: everything that defines the training of one expert, and its inputs for the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ttmoe.adapter import AdapterSpec
from ttmoe.base import Base
from ttmoe.expert import Expert
from ttmoe.expert_files import Manifest, save_expert
from workers.base.resident import ResidentBase
from workers.cache.tokens import load_tokenized_rows
from workers.cache.trunk_states import load_or_compute_trunk
from workers.data.prepared import PreparedTask
from workers.progress import Progress, ProgressCallback
from workers.stopwatch import activity_timer
from workers.training.batches import TokenizedRows
from workers.training.checkpoints import CheckpointFolder
from workers.training.memory import MemoryEstimate, estimate_job_memory
from workers.training.settings import TrainSettings
from workers.training.state import ExpertTraining


@dataclass(frozen=True)
class ExpertJob:
    """Everything that defines one expert, and where it is written.

    Attributes:
        task: Name of the task and of the expert.
        base: The base.
        data: The prepared task.
        adapter: Spec of the adapter.
        head: ``trained`` or ``frozen``.
        train: Training settings.
        spec_hash: Hash of the expert's spec.
        parameters: Expected number of adapter parameters.
        folder: Folder for the expert files, the result and, until it exists, checkpoints.
        threads: CPU threads of the process.
        device: Device of the base, such as "cpu" or "cuda".
        cache: Root folder of the cache that jobs share; "" for a cache of this job alone.
        trunk_bytes: Bytes of the cache that trunk states may take; 0 caches no trunk states.
        trainings: Number of trainings, this one included, that will read the same rows, such as the trials of a search.
        scorer: Function that scores the texts of an expert, see ``workers.generated_score``; "" for none.
        scorer_rows: Maximum number of test rows that are scored.
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
    trainings: int = 1
    scorer: str = ""
    scorer_rows: int = 0

    @property
    def classes(self) -> int:
        """Number of outputs of the head: 1 in a choice task, 0 in a task that generates text."""
        return 1 if self.data.kind == "choice" else len(self.data.label_names)

    @property
    def options(self) -> int:
        """Number of sequences per row: the options of a choice task, otherwise 1."""
        return (len(self.data.label_names) or 1) if self.data.kind == "choice" else 1

    @property
    def cache_folder(self) -> Path:
        """Root folder of cached tokens and trunk states."""
        return Path(self.cache or f"{self.folder}.cache")

    def caches_training_trunk(self, rows: int, tokens: int) -> bool:
        """Return whether trunk states of the training split are cached: its trainings read at least half of it.

        Other trainings compute the states of each batch in its step. The answer does not depend on what is in the
        cache: the same job then has the same rounding, whatever ran before it.

        Args:
            rows: Rows of the training split.
            tokens: Tokens of the training split, at least approximately.
        """
        return 2 * self.trainings * self.train.steps * self.train.batch_rows(rows, tokens) >= rows

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The checkpoints of the training."""
        return CheckpointFolder(Path(self.folder, "checkpoints"), self.spec_hash)


def save_trained(
    job: ExpertJob, expert: Expert, folder: Path, spec_hash: str, metrics: dict[str, float], answer_tokens: int
) -> Manifest:
    """Write the files of an expert that was trained on a job's rows, and return its manifest.

    Args:
        job: The job.
        expert: The expert.
        folder: Folder for the files; as ``save_expert`` takes it, and so are the others.
        spec_hash: Hash of the spec that the expert was made from.
        metrics: Metrics of the training.
        answer_tokens: Tokens of the longest answer; 0 if it generates no text.
    """
    return save_expert(
        expert,
        folder,
        task=job.task,
        kind=job.data.kind,
        labels=job.data.label_names,
        base=job.base.record(),
        spec_hash=spec_hash,
        metrics=metrics,
        answer_tokens=answer_tokens,
        chat_template=job.base.chat_template if job.data.kind == "chat" else "",
    )


def estimate_jobs_memory(jobs: Sequence[ExpertJob], model: nn.Module, processes: int = 1) -> MemoryEstimate:
    """Return the memory estimate of the largest of these jobs, in one process, if all are trained together.

    Args:
        jobs: Jobs on the same base; not empty.
        model: The whole body of the base; it may be on the meta device.
        processes: Processes that train together.
    """
    estimates = [
        estimate_job_memory(
            model,
            job.base,
            job.adapter,
            job.classes,
            job.train,
            options=job.options,
            experts=len(jobs),
            device=job.device,
            processes=processes,
        )
        for job in jobs
    ]
    return max(estimates, key=lambda estimate: estimate.total)


def prepare_training(
    job: ExpertJob, resident_base: ResidentBase, report: ProgressCallback, *, resumes: bool = True
) -> ExpertTraining:
    """Add a new expert to the bank, and return it with its training and validation rows.

    Args:
        job: The job.
        resident_base: The loaded base of the job.
        report: Receives progress reports with the task as key.
        resumes: Whether to write checkpoints and to resume from them.
    """
    generator = torch.Generator().manual_seed(job.train.seed or 0)
    resident_base.bank.add(job.task, job.adapter, job.classes, generator, random_head=job.head == "frozen")
    train, validation = (load_rows(job, resident_base, split, report) for split in ("train", "validation"))
    return ExpertTraining(job.task, train, validation, job.train, job.head, job.checkpoints if resumes else None)


def load_rows(job: ExpertJob, resident_base: ResidentBase, split: str, report: ProgressCallback) -> TokenizedRows:
    """Return the tokens of a split, with trunk states if the job caches them; fill the cache if necessary.

    Trunk states of the training split are not cached for a training that reads a small part of it, and none are cached
    on a sharded base. The process keeps the rows of a job that is one of several trainings on them, until a job reads
    other rows.

    Args:
        job: The job; its expert must be in the bank.
        resident_base: The loaded base of the job.
        split: ``train``, ``validation`` or ``test``.
        report: Receives progress reports with the task as key.
    """

    def read_tokens() -> TokenizedRows:
        with activity_timer("tokens", job.task):
            return load_tokenized_rows(job.base, resident_base.tokenizer, job.data, split, job.cache_folder)

    rows = _kept(job, resident_base, (split,), read_tokens)
    depth = resident_base.bank.expert(job.task).adapter.lowest_layer
    if not depth or not job.trunk_bytes or resident_base.engine.shards_base:
        return rows  # all processes pass through a sharded base together, so none can fill a cache for the others
    if split == "train" and not job.caches_training_trunk(len(rows), sum(rows.token_counts)):
        return rows

    def report_with_key(progress: Progress) -> None:
        report(replace(progress, key=job.task))

    def read_states() -> TokenizedRows:
        with activity_timer("trunk", job.task):
            states = load_or_compute_trunk(
                resident_base.bank,
                rows,
                base=job.base,
                fingerprint=job.data.fingerprint,
                split=split,
                depth=depth,
                pad_id=resident_base.pad_id,
                cache=job.cache_folder,
                budget=job.trunk_bytes,
                report=report_with_key,
            )
        return replace(rows, states=states)

    return _kept(job, resident_base, (split, depth, job.trunk_bytes), read_states)


def _kept(
    job: ExpertJob, resident_base: ResidentBase, key: tuple[Any, ...], read: Callable[[], TokenizedRows]
) -> TokenizedRows:
    """Return what ``read`` returns; keep it in the process for further trainings on the same rows, if there will be."""
    if job.trainings < 2:
        return read()
    source = (job.cache_folder, job.data.folder, job.data.fingerprint, job.base.max_length)
    kept = resident_base.kept_rows
    if source not in kept:
        kept.clear()  # only those of one task
    rows = kept.setdefault(source, {})
    if key not in rows:
        rows[key] = read()
    return rows[key]
