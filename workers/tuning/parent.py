"""The parent of a cutting job: loaded from its files, or trained."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ttmoe.errors import InputError
from ttmoe.expert_files import Manifest, load_expert, read_manifest
from workers.base.resident import ResidentBase
from workers.expert_job import ExpertJob, load_rows, prepare_training, save_trained
from workers.progress import ProgressCallback
from workers.training.batches import TokenizedRows
from workers.training.loop import fit_expert

_LOG = logging.getLogger("ttmoe")


@dataclass(frozen=True)
class Parent:
    """A parent in the bank.

    Attributes:
        train: Its training split.
        validation: Its validation split.
        steps: Steps of its training; 0 if it was given.
        seconds: Seconds of its training; 0 if it was given.
        folder: Folder of its files.
    """

    train: TokenizedRows
    validation: TokenizedRows
    steps: int
    seconds: float
    folder: str

    @property
    def answer_tokens(self) -> int:
        """Tokens of the longest answer in the training split; 0 for an expert that does not generate text."""
        return self.train.longest_answer


def load_or_train_parent(
    expert: ExpertJob, given: str, resident_base: ResidentBase, report: ProgressCallback
) -> Parent:
    """Add a parent to the bank, frozen, under its task's name.

    Args:
        expert: The parent's job. A trained parent's files are in ``parent`` in its folder.
        given: Folder of a parent that is trained already; "" for one that is trained here, unless its files exist.
        resident_base: The loaded base.
        report: Receives progress reports with the task as key.

    Raises:
        TrainingFailedError: If its training fails.
        InputError: If the files of a given parent are damaged or do not fit.
    """
    folder, bank = Path(given or Path(expert.folder, "parent")), resident_base.bank
    if given:
        load_expert(bank, folder, expert.base.digest, name=expert.task)
        # Nothing else reads the training rows of a given parent: states of those that are drawn are computed here.
        train = load_rows(replace(expert, trunk_bytes=0), resident_base, "train", report)
        return Parent(train, load_rows(expert, resident_base, "validation", report), 0, 0.0, str(folder))
    if manifest := _load_trained(expert, folder, resident_base):
        train, validation = (load_rows(expert, resident_base, split, report) for split in ("train", "validation"))
        took = manifest.metrics
        return Parent(train, validation, int(took["steps"]), took["seconds.training"], str(folder))
    training = prepare_training(expert, resident_base, report)
    fit = fit_expert(bank, training, pad_id=resident_base.pad_id, report=report)
    parent = Parent(training.train, training.validation, fit.steps, fit.seconds, str(folder))
    trained = bank.expert(expert.task).requires_grad_(False)
    save_trained(expert, trained, folder, expert.spec_hash, fit.metrics(), parent.answer_tokens)
    expert.checkpoints.remove()
    return parent


def _load_trained(expert: ExpertJob, folder: Path, resident_base: ResidentBase) -> Manifest | None:
    """Add the parent that an earlier attempt has trained; None if there is none of this spec, or it is damaged."""
    try:
        if read_manifest(folder).spec_hash == expert.spec_hash:
            return load_expert(resident_base.bank, folder, expert.base.digest, name=expert.task)
    except InputError as error:
        if folder.exists():
            _LOG.warning("The parent is trained again: %s", error)
    return None
