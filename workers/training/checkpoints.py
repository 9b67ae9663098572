"""Where a training stands, on disk: what it needs to go on as if it had never stopped. Never arbitrary pickle."""

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

CHECKPOINT_FORMAT = (
    1  # raise it when a checkpoint of this code would be read wrongly by older code, or the other way round
)
KEPT = 2
SUFFIX = ".checkpoint"
_LOG = logging.getLogger("ttmoe")


@dataclass(frozen=True)
class Checkpoint:
    """A training after ``step`` steps; ``done`` says that it has taken its last.

    ``expert`` is the state of adapter and head, ``optimizer`` the optimizer's. Batches and learning rates follow from
    the step. ``random`` are the states of the random generators after the step, by device type. ``tokens`` counts the
    real and the processed tokens so far, ``waited`` the evaluations since the best.
    """

    spec_hash: str
    step: int
    done: bool
    expert: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    best: dict[str, float]
    best_step: int
    best_expert: dict[str, Tensor]
    waited: int
    seconds: float
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    format: int = CHECKPOINT_FORMAT


class CheckpointFolder:
    """The newest checkpoints of one expert, of the spec of that hash."""

    def __init__(self, folder: Path, spec_hash: str) -> None:
        self.folder, self.spec_hash = folder, spec_hash

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it whole, then let go of all but the newest. A full disk is told in the log: the older ones stay."""
        buffer = io.BytesIO()
        torch.save(vars(checkpoint), buffer)
        try:
            write_checksummed(self.folder / f"{checkpoint.step:08d}{SUFFIX}", buffer.getvalue())
            self._prune(checkpoint.step)
        except OSError as error:
            _LOG.warning("the checkpoint of step %d is not kept: %s", checkpoint.step, error)

    def found(self) -> list[Checkpoint]:
        """Those that are whole and of this spec, the newest first; the log names any other."""
        found = []
        for path in self._paths():
            try:
                found.append(self._read(path))
            except (CorruptFileError, OSError) as error:
                _LOG.warning("checkpoint passed over: %s", error)
        return found

    def remove(self) -> None:
        """The expert has finished: nothing is to be resumed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{SUFFIX}"), reverse=True)

    def _prune(self, step: int) -> None:
        # What lies ahead is damaged, or of a line that was given up; and parts of files were left by a killed process.
        past = [path for path in self._paths() if path.name <= f"{step:08d}{SUFFIX}"]
        for path in {*self._paths(), *self.folder.glob(".*")} - {*past[:KEPT]}:
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> Checkpoint:
        data = read_checksummed(path)
        try:
            values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
            raise CorruptFileError(f"{path} cannot be read ({error})") from error
        if not isinstance(values, dict) or values.keys() != {f.name for f in fields(Checkpoint)}:
            raise CorruptFileError(f"{path} is no checkpoint of this format")
        if (values["format"], values["spec_hash"]) != (CHECKPOINT_FORMAT, self.spec_hash):
            raise CorruptFileError(f"{path} is of format {values['format']} and spec {values['spec_hash'][:12]}, "
                               f"not of {CHECKPOINT_FORMAT} and {self.spec_hash[:12]}")  # fmt: skip
        return Checkpoint(**values)


def common_checkpoints(found: list[list[Checkpoint]]) -> list[Checkpoint | None]:
    """The checkpoint of each training to go on from, given what each has (the newest first).

    Those that train together save together, but may be stopped between one's save and another's: the newest moment is
    taken at which each was at the same step, or had ended before. Where there is none, they were not together before,
    and each goes on from its newest.
    """
    for step in sorted({checkpoint.step for each in found for checkpoint in each}, reverse=True):
        taken = [next((c for c in each if c.step == step or (c.done and c.step < step)), None) for each in found]
        if all(taken):
            return list(taken)
    return [each[0] if each else None for each in found]
