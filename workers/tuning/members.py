"""A cutting job, and what it returns: its parent and members, each with its size and its validation metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.expert_job import ExpertJob


@dataclass(frozen=True)
class CuttingJob:
    """The cuts of one expert.

    Attributes:
        expert: The expert to cut, the parent. Its folder receives the parent's files, checkpoints until they exist, and
            the files of members that are kept.
        ranks: Ranks of the members.
        rows: Training rows from which the moments are computed.
        distill_steps: Most steps of a distillation, see ``distillation_steps``; 0 for none.
        parent: Folder with the files of a parent that is trained already; "" trains it.
        keep: Ranks whose files are written, and the spec hash of each.
    """

    expert: ExpertJob
    ranks: tuple[int, ...]
    rows: int = 512
    distill_steps: int = 0
    parent: str = ""
    keep: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """The parent, or a cut of it.

    Attributes:
        rank: Rank of the adapter.
        shapes: Shape of each role's update.
        parameters: Trainable parameters of the adapter, without the head.
        accuracy: Accuracy on the validation split, 0 to 1.
        loss: Loss on the validation split.
        distilled: Whether the weights are those after a distillation.
        accuracy_cut: Accuracy before the distillation.
        loss_cut: Loss before the distillation.
        steps: Training steps for this member alone: of the parent, or of the distillation, kept or not.
        seconds: Seconds for this member alone.
        folder: Folder of its files; "" if they are not kept.
    """

    rank: int
    shapes: dict[str, str]
    parameters: int
    accuracy: float
    loss: float
    distilled: bool
    accuracy_cut: float
    loss_cut: float
    steps: int
    seconds: float
    folder: str = ""


@dataclass(frozen=True)
class CuttingResult:
    """The result of a cutting job.

    Attributes:
        parent: The expert that was cut.
        members: Its cuts, in the order of the job's ranks.
        metrics: Seconds of each part, ``seconds.<part>``, and the training steps in all, ``steps``.
    """

    parent: Member
    members: tuple[Member, ...]
    metrics: dict[str, float]
