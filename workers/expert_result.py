"""What came of an expert's job, as a file beside the expert: where it is, the expert is whole and verified."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_WEIGHTS, read_manifest, write_whole

EXPERT_RESULT_FILE = "result.json"


@dataclass(frozen=True)
class ExpertResult:
    """What came of a job: metrics by name (``test.accuracy`` among them), counts and seconds."""

    task: str
    spec_hash: str
    metrics: dict[str, float]
    parameters: int
    weights_digest: str
    folder: str


def write_result(result: ExpertResult) -> None:
    """The result is written last and whole: where it is, the expert beside it is verified."""
    write_whole(Path(result.folder, EXPERT_RESULT_FILE), json.dumps(asdict(result), indent=1).encode())


def finished_result(folder: Path, spec_hash: str) -> ExpertResult | None:
    """The result of an earlier run of the same spec, if it is there and the expert beside it is still whole."""
    try:
        result = ExpertResult(**json.loads((folder / EXPERT_RESULT_FILE).read_text()))
        manifest = read_manifest(folder)
        weights = hashlib.sha256((folder / EXPERT_WEIGHTS).read_bytes()).hexdigest()
    except (OSError, ValueError, TypeError, InputError):
        return None
    recorded = {result.weights_digest, manifest.weights_digest}
    if recorded != {weights} or {result.spec_hash, manifest.spec_hash} != {spec_hash}:
        return None
    return replace(result, folder=str(folder))
