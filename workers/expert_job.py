"""One expert from start to finish: data, training, files, verification, the test split."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ttmoe.adapter import AdapterSpec, count_parameters
from ttmoe.bank import Bank
from ttmoe.base import Base, load_body, load_tokenizer
from ttmoe.encoding import pad_id_of
from ttmoe.expert_files import load_expert, save_expert
from workers.batches import Rows, tokenise
from workers.evaluation import evaluate, scores_of
from workers.prepared import Prepared, load_split
from workers.progress import Progress, Report
from workers.settings import Train
from workers.training import fit

RESULT = "result.json"
PROBES = 8


class VerificationError(RuntimeError):
    """An expert that was saved does not come back as it was trained; it must not be registered."""


@dataclass(frozen=True)
class ExpertJob:
    """All that decides one expert, and where it is written. ``folder`` gets the two expert files and the result."""

    task: str
    base: Base
    data: Prepared
    adapter: AdapterSpec
    head: str
    train: Train
    spec_hash: str
    parameters: int
    folder: str
    threads: int = 1
    device: str = "cpu"

    @property
    def classes(self) -> int:
        """The head's number of outputs."""
        return 1 if self.data.kind == "choice" else len(self.data.label_names)


@dataclass(frozen=True)
class ExpertResult:
    """What came of a job: metrics by name (``test.accuracy`` among them), counts and seconds."""

    task: str
    spec_hash: str
    metrics: dict[str, float]
    parameters: int
    weights_digest: str
    folder: str


def run_expert(job: ExpertJob, report: Report) -> ExpertResult:
    """Train, save, verify and test one expert. Raises what the training raised, or VerificationError."""
    torch.set_num_threads(job.threads)
    report(Progress("loading", 0, job.train.steps))
    began = time.monotonic()
    bank, tokenizer = Bank(load_body(job.base, job.device), job.base.pooling), load_tokenizer(job.base)
    rows = {
        split: tokenise(tokenizer, load_split(job.data, split), job.base.max_length)
        for split in ("train", "validation", "test")
    }
    bank.add(
        job.task,
        job.adapter,
        job.classes,
        torch.Generator().manual_seed(job.train.seed or 0),
        random_head=job.head == "frozen",
    )
    pad_id = pad_id_of(tokenizer)
    trained = fit(
        bank,
        job.task,
        rows["train"],
        rows["validation"],
        job.train,
        head=job.head,
        pad_id=pad_id,
        report=report,
    )
    report(Progress("testing", trained.steps, job.train.steps))
    tested = evaluate(bank, job.task, rows["test"], pad_id)
    metrics = {f"validation.{key}": value for key, value in trained.best.items()}
    metrics |= {f"test.{key}": value for key, value in tested.items()}
    metrics |= {"steps": trained.steps, "best_step": trained.best_step, "seconds.training": trained.seconds}
    report(Progress("verifying", trained.steps, job.train.steps))
    digest = _save_and_verify(job, bank, rows["test"], metrics, pad_id)
    metrics["seconds.job"] = time.monotonic() - began
    return _write_result(job, metrics, digest)


def _save_and_verify(job: ExpertJob, bank: Bank, probes: Rows, metrics: dict[str, float], pad_id: int) -> str:
    """Write the files, load them again beside the expert, and compare: count, finiteness, outputs to the last bit."""
    expert = bank.expert(job.task)
    folder = Path(job.folder)
    manifest = save_expert(
        expert,
        folder,
        task=job.task,
        kind=job.data.kind,
        labels=job.data.label_names,
        base=job.base.identity(),
        spec_hash=job.spec_hash,
        metrics=metrics,
    )
    if count_parameters(expert.adapter.groups) != job.parameters:
        raise VerificationError(f"{job.task}: {manifest.parameters} parameters were trained, {job.parameters} planned")
    load_expert(bank, folder, job.base.digest, name="reloaded copy")
    items = probes.items[:PROBES]
    before, after = (scores_of(bank, name, items, pad_id) for name in (job.task, "reloaded copy"))
    if not all(torch.equal(a, b) and torch.isfinite(a).all() for a, b in zip(before, after, strict=True)):
        raise VerificationError(
            f"{job.task}: the saved expert answers {PROBES} probe rows differently, or not finitely"
        )
    bank.remove("reloaded copy")
    return manifest.weights_digest


def _write_result(job: ExpertJob, metrics: dict[str, float], digest: str) -> ExpertResult:
    """The result is written last and whole: where it is, the expert beside it is verified."""
    result = ExpertResult(job.task, job.spec_hash, metrics, job.parameters, digest, job.folder)
    part = Path(job.folder, f".{RESULT}")
    part.write_text(json.dumps(asdict(result), indent=1))
    part.replace(Path(job.folder, RESULT))
    return result


def finished_result(folder: Path, spec_hash: str) -> ExpertResult | None:
    """The result of an earlier run of the same spec that was not registered any more, if there is one."""
    try:
        result = ExpertResult(**json.loads((folder / RESULT).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return replace(result, folder=str(folder)) if result.spec_hash == spec_hash else None
