"""The cutting job: one training of an expert gives experts of every smaller rank, measured on the validation split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from ttmoe.adapter import count_parameters
from ttmoe.bank import Bank
from ttmoe.cutting import cut_expert, spec_of_rank
from ttmoe.expert import Expert
from ttmoe.expert_files import load_expert
from ttmoe.methods import TensorTrain
from workers.base.resident import load_resident_base
from workers.expert_job import save_trained
from workers.expert_runner import VerificationError
from workers.progress import Progress, ProgressCallback
from workers.stopping import raise_if_stopped
from workers.training.batches import training_batches
from workers.training.evaluation import last_batch_scores
from workers.tuning.distillation import distil, distillation_settings, distillation_steps, teacher_answers
from workers.tuning.members import CuttingJob, CuttingResult, Member
from workers.tuning.parent import Parent, load_or_train_parent
from workers.tuning.passes import measure_experts, training_moments

_RELOADED = "reloaded copy"  # name of the expert that is loaded from the saved files


def run_cutting(job: CuttingJob, report: ProgressCallback) -> CuttingResult:
    """Train or load the parent, cut it to every rank, and measure all on the validation split.

    A parent that an earlier attempt has trained is not trained again; an interrupted training resumes.

    Args:
        job: The job.
        report: Receives progress reports with the task as key.

    Raises:
        TrainingFailedError: If the parent's training fails.
        InputError: If the files of a given parent are damaged or do not fit.
        VerificationError: If saved files do not hold a member.
        StoppedError: If the work is to stop.
    """
    expert, seconds = job.expert, _Seconds()
    torch.set_num_threads(expert.threads)
    report(Progress("loading", 0, expert.train.steps, key=expert.task))
    with seconds.of("loading"):
        resident_base = load_resident_base(expert.base, expert.device)
    with resident_base.in_use() as bank:
        with seconds.of("parent"):
            parent = load_or_train_parent(expert, job.parent, resident_base, report)
        cuts = _cut(job, bank, parent, resident_base.pad_id, report, seconds)
        with seconds.of("validation"):
            names, beat = [_name(job, rank) for rank in job.ranks], _heartbeat(report, expert.task, "validating")
            found = measure_experts(bank, [expert.task, *names], parent.validation, resident_base.pad_id, beat)
        whole = _member(bank.expert(expert.task), found[expert.task], parent.seconds)
        whole = replace(whole, steps=parent.steps, folder=parent.folder)
        members = [_member(bank.expert(_name(job, rank)), found[_name(job, rank)], cuts[rank]) for rank in job.ranks]
        with seconds.of("distillation"):
            members = _distil(job, bank, parent, whole.loss, members, resident_base.pad_id, report)
        members = [_keep(job, bank, member, parent, resident_base.pad_id) for member in members]
    steps = float(sum(member.steps for member in (whole, *members)))
    return CuttingResult(whole, tuple(members), seconds.metrics | {"steps": steps})


class _Seconds:
    """The seconds of the parts of a job."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time in this context to a part."""
        start, key = time.monotonic(), f"seconds.{part}"
        yield
        self.metrics[key] = self.metrics.get(key, 0.0) + time.monotonic() - start


def _cut(
    job: CuttingJob, bank: Bank, parent: Parent, pad_id: int, report: ProgressCallback, seconds: _Seconds
) -> dict[int, float]:
    """Add a cut to every rank to the bank, frozen; return the seconds of each."""
    expert, cuts = job.expert, dict[int, float]()
    with seconds.of("moments"):
        beat = _heartbeat(report, expert.task, "moments")
        moments = training_moments(bank, expert.task, parent.train, pad_id, expert.train, job.rows, beat)
    for done, rank in enumerate(job.ranks):
        _heartbeat(report, expert.task, "cutting", done, len(job.ranks))()
        with seconds.of("cuts"):
            start, spec = time.monotonic(), spec_of_rank(bank.expert(expert.task).adapter.spec, rank)
            bank.attach(_name(job, rank), cut_expert(bank, expert.task, spec, moments).requires_grad_(False))
            cuts[rank] = time.monotonic() - start
    return cuts


def _name(job: CuttingJob, rank: int) -> str:
    """Return the name of a member in the bank."""
    return f"{job.expert.task} of rank {rank}"


def _heartbeat(report: ProgressCallback, task: str, state: str, step: int = 0, steps: int = 0) -> Callable[[], None]:
    """Return a function that reports an activity, and ends the work if it is to stop."""

    def beat() -> None:
        report(Progress(state, step, steps, key=task))
        raise_if_stopped(lambda: None)

    return beat


def _member(expert: Expert, metrics: dict[str, float], seconds: float) -> Member:
    """Describe an expert of the bank that is not distilled."""
    groups = expert.adapter.groups
    return Member(
        rank=expert.adapter.spec.rank,
        shapes={g.role: str(g.method.shape if isinstance(g.method, TensorTrain) else g.method) for g in groups},
        parameters=count_parameters(groups),
        accuracy=metrics["accuracy"],
        loss=metrics["loss"],
        distilled=False,
        accuracy_cut=metrics["accuracy"],
        loss_cut=metrics["loss"],
        steps=0,
        seconds=seconds,
    )


def _distil(
    job: CuttingJob,
    bank: Bank,
    parent: Parent,
    loss: float,
    members: list[Member],
    pad_id: int,
    report: ProgressCallback,
) -> list[Member]:
    """Distil the members whose loss is above the parent's; validation says whether the new weights are kept."""
    expert, train = job.expert, job.expert.train
    steps = {member.rank: distillation_steps(job.distill_steps, loss, member.loss) for member in members}
    if not any(steps.values()):
        return members
    every = training_batches(parent.train, train.batch_size, train.seed or 0, train.batch_tokens)
    longest, teacher_rank = list(islice(every, max(steps.values()))), bank.expert(expert.task).adapter.spec.rank
    beat = _heartbeat(report, expert.task, "distilling", 0, sum(count > 0 for count in steps.values()))
    answers = teacher_answers(bank, expert.task, parent.train, longest, pad_id)
    for index, member in enumerate(members):
        if batches := longest[: steps[member.rank]]:
            start, name = time.monotonic(), _name(job, member.rank)
            student = bank.expert(name)
            before = {key: value.clone() for key, value in student.state_dict().items()}
            _require_gradients(student, expert.head)
            settings = distillation_settings(train, teacher_rank, member.rank, len(batches))
            distil(bank, name, parent.train, batches, answers, settings, pad_id, beat)
            student.requires_grad_(False)
            after = measure_experts(bank, [name], parent.validation, pad_id, beat)[name]
            better = _is_better(after, member, len(parent.validation))
            if not better:
                student.load_state_dict(before)
                after = {"accuracy": member.accuracy, "loss": member.loss}
            members[index] = replace(
                member,
                accuracy=after["accuracy"],
                loss=after["loss"],
                distilled=better,
                steps=len(batches),
                seconds=member.seconds + time.monotonic() - start,
            )
    return members


def _is_better(after: dict[str, float], cut: Member, rows: int) -> bool:
    """Return whether a distilled member has less loss and no fewer right answers than by chance.

    The loss tells more than the accuracy of some hundred rows, but where most rows are uncertain it falls with answers.
    """
    chance = math.sqrt(cut.accuracy * (1 - cut.accuracy) / rows)
    return after["loss"] < cut.loss and after["accuracy"] >= cut.accuracy - chance


def _require_gradients(expert: Expert, head: str) -> None:
    """Let an expert be trained, as its parent was."""
    expert.requires_grad_(True)
    expert.head.requires_grad_(head == "trained" and expert.head.out_features > 0)
    if expert.head.out_features == 1:  # all options share the bias
        expert.head.bias.requires_grad_(False)


def _keep(job: CuttingJob, bank: Bank, member: Member, parent: Parent, pad_id: int) -> Member:
    """Write the files of a member, if they are to be kept, and check that they hold it.

    Raise VerificationError if the scores of the loaded files on the last batch of the validation rows are not finite
    or not, bit by bit, those of the member.
    """
    if member.rank not in job.keep:
        return member
    folder, name = Path(job.expert.folder, f"rank-{member.rank}"), _name(job, member.rank)
    metrics = {"validation.accuracy": member.accuracy, "validation.loss": member.loss}
    save_trained(job.expert, bank.expert(name), folder, job.keep[member.rank], metrics, parent.answer_tokens)
    load_expert(bank, folder, job.expert.base.digest, name=_RELOADED)
    try:
        own, again = (last_batch_scores(bank, each, parent.validation, pad_id) for each in (name, _RELOADED))
    finally:
        bank.remove(_RELOADED)
    if not all(torch.equal(own[row], found) and found.isfinite().all() for row, found in again.items()):
        raise VerificationError(f"{name}: the saved expert gives other or non-finite scores")
    return replace(member, folder=str(folder))
