"""The result file of an expert job, written next to the expert after the expert was verified."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ttmoe.atomic_write import write_atomically
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_WEIGHTS, read_manifest

EXPERT_RESULT_FILE = "result.json"

CUT_ROWS, HEAD_PARAMETERS = "rows.cut", "parameters.head"  # metrics of an expert


@dataclass(frozen=True)
class ExpertResult:
    """The result of an expert job.

    Attributes:
        task: Name of the task.
        spec_hash: Hash of the expert's spec.
        metrics: Metrics by name, such as ``test.accuracy``. ``seconds.job`` is the time of the job's last attempt until
            its result, the work of the same process for other experts included. ``seconds.<activity>`` (see
            ``workers.stopwatch``) is the time for this expert over all attempts, up to the checkpoints resumed from.
        parameters: Number of trained adapter parameters.
        weights_digest: SHA-256 of the weights file.
        folder: Folder of the expert's files.
    """

    task: str
    spec_hash: str
    metrics: dict[str, float]
    parameters: int
    weights_digest: str
    folder: str


def write_result(result: ExpertResult) -> None:
    """Write the result file atomically. Must be called last: the file marks the expert as complete and verified."""
    write_atomically(Path(result.folder, EXPERT_RESULT_FILE), json.dumps(asdict(result), indent=1).encode())


def finished_result(folder: Path, spec_hash: str) -> ExpertResult | None:
    """Return the result of an earlier job with the same spec.

    Returns:
        The result with the current ``folder``; None if there is no result of this spec, or if the files of the expert
        are missing or damaged.
    """
    try:
        result = ExpertResult(**json.loads((folder / EXPERT_RESULT_FILE).read_text()))
        manifest = read_manifest(folder)
        weights_digest = hashlib.sha256((folder / EXPERT_WEIGHTS).read_bytes()).hexdigest()
    except (OSError, ValueError, TypeError, InputError):
        return None
    if {result.weights_digest, manifest.weights_digest} != {weights_digest}:
        return None
    if {result.spec_hash, manifest.spec_hash} != {spec_hash}:
        return None
    return replace(result, folder=str(folder))
