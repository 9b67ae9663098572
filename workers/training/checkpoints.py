"""Training checkpoints on disk: save, validate, load and prune them. They are never unpickled as arbitrary objects."""

from __future__ import annotations

import io
import logging
import pickle
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.training.checksummed_files import CorruptFileError, read_checksummed, write_checksummed

# Raise it when older code would misread a checkpoint of this code, or this code a checkpoint of older code.
CHECKPOINT_FORMAT = 2
CHECKPOINTS_KEPT = 2
SUFFIX = ".checkpoint"
_LOG = logging.getLogger("ttmoe")


@dataclass(frozen=True)
class Checkpoint:
    """The state of one expert's training after ``step`` steps. Its draws and learning rates follow from the step.

    Attributes:
        spec_hash: Hash of the expert's spec.
        step: Optimizer steps taken.
        done: Whether the training has finished.
        expert: State dict of adapter and head.
        optimizer: State dict of the optimizer.
        best: Best validation metrics.
        best_step: Step of the best validation metrics.
        best_expert: State dict of adapter and head at ``best_step``.
        waited: Evaluations since the best one.
        seconds: Training time over all attempts.
        tokens: Number of real and of processed (padded) tokens.
        format: Version of the checkpoint format.
        activities: Seconds of the expert by activity over all attempts, see ``workers.stopwatch``.
    """

    spec_hash: str
    step: int
    done: bool
    expert: dict[str, Tensor]
    optimizer: dict[str, Any]
    best: dict[str, float]
    best_step: int
    best_expert: dict[str, Tensor]
    waited: int
    seconds: float
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    format: int = CHECKPOINT_FORMAT
    activities: dict[str, float] = field(default_factory=dict)


class CheckpointFolder:
    """The folder with the newest checkpoints of one expert, identified by its spec hash."""

    def __init__(self, folder: Path, spec_hash: str) -> None:
        self.folder, self.spec_hash = folder, spec_hash

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint atomically and delete all but the newest ``CHECKPOINTS_KEPT``.

        If it cannot be written (for example because the disk is full), log a warning and keep the older checkpoints.
        """
        buffer = io.BytesIO()
        torch.save(vars(checkpoint), buffer)
        try:
            write_checksummed(self.folder / f"{checkpoint.step:08d}{SUFFIX}", buffer.getvalue())
            self._prune(checkpoint.step)
        except OSError as error:
            _LOG.warning("The checkpoint of step %d could not be saved: %s", checkpoint.step, error)

    def load(self) -> list[Checkpoint]:
        """Return the valid checkpoints of this spec, newest first, and log a warning for every other one."""
        checkpoints = []
        for path in self._paths():
            try:
                checkpoints.append(self._read(path))
            except (CorruptFileError, OSError) as error:
                _LOG.warning("Ignored a checkpoint: %s", error)
        return checkpoints

    def remove(self) -> None:
        """Delete the folder and its checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{SUFFIX}"), reverse=True)

    def _prune(self, step: int) -> None:
        # Later steps are damaged files or belong to an abandoned continuation. Hidden files are parts of checkpoints
        # that a killed process left.
        valid = [path for path in self._paths() if path.name <= f"{step:08d}{SUFFIX}"]
        for path in {*self._paths(), *self.folder.glob(".*")} - {*valid[:CHECKPOINTS_KEPT]}:
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> Checkpoint:
        data = read_checksummed(path)
        try:
            values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
            raise CorruptFileError(f"{path} cannot be read ({error})") from error
        names = {f.name for f in fields(Checkpoint)}
        if not isinstance(values, dict) or values.keys() != names:
            raise CorruptFileError(f"{path} is not a checkpoint of this format")
        if (values["format"], values["spec_hash"]) != (CHECKPOINT_FORMAT, self.spec_hash):
            raise CorruptFileError(f"{path} has format {values['format']} and spec {values['spec_hash'][:12]}, "
                                   f"not format {CHECKPOINT_FORMAT} and spec {self.spec_hash[:12]}")  # fmt: skip
        return Checkpoint(**values)


def common_checkpoints(histories: list[list[Checkpoint]]) -> list[Checkpoint | None]:
    """Choose the checkpoint from which each of several trainings resumes.

    Experts that train together save together, but a crash may fall between two saves. The newest step is chosen at
    which every training has a checkpoint or had finished before. If there is none, the trainings did not run together
    before, and each resumes from its newest checkpoint.

    An expert draws the same alone and beside any other, but the last bits of its results depend on the padding of the
    batch: only experts that are at the same steps again give the same bits.

    Args:
        histories: Checkpoints of each training, newest first.

    Returns:
        One checkpoint for each training; None starts it from the beginning.
    """
    for step in sorted({checkpoint.step for history in histories for checkpoint in history}, reverse=True):
        chosen = [next((c for c in history if c.step == step or (c.done and c.step < step)), None)
                  for history in histories]  # fmt: skip
        if all(chosen):
            return list(chosen)
    return [history[0] if history else None for history in histories]
