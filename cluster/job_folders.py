"""Jobs that have a folder each in a storage folder: their record, output and exit code."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.jobs import SubmittedJob

SCRIPT, LOG, EXIT_CODE, CANCELLED = "job.sh", "log.txt", "exit_code", "cancelled"
_RECORD = "job.json"
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job.

    Attributes:
        path: The folder; its name is the job's id.
    """

    path: Path

    @classmethod
    def of(cls, storage: str, job_id: str) -> JobFolder:
        """Return the folder of a job in a storage folder."""
        return cls(Path(storage, "jobs", job_id))

    def quoted(self, name: str = "") -> str:
        """Return the path of a file in the folder, or of the folder, quoted for a shell."""
        return shlex.quote(str(self.path / name))

    def write_record(self, metadata: Mapping[str, str], **more: Any) -> None:
        """Write the record by which the job is listed: texts of the submission, and what the system calls it."""
        record = {"submitted": time.time(), "metadata": dict(metadata), **more}
        part = self.path / f".{_RECORD}"
        part.write_text(json.dumps(record))
        part.replace(self.path / _RECORD)

    @property
    def record(self) -> dict[str, Any]:
        """The record."""
        return json.loads((self.path / _RECORD).read_text())

    @property
    def is_cancelled(self) -> bool:
        """Whether the end of the job was asked for."""
        return (self.path / CANCELLED).exists()

    def cancel(self) -> None:
        """Note that the end of the job was asked for."""
        (self.path / CANCELLED).touch()

    @property
    def exit_code(self) -> int | None:
        """Exit code of the job's command; None before it ends, or if it was killed."""
        path = self.path / EXIT_CODE
        return int(path.read_text()) if path.exists() and path.stat().st_size else None

    @property
    def ended(self) -> float | None:
        """Unix time in seconds at which the command ended."""
        return None if self.exit_code is None else (self.path / EXIT_CODE).stat().st_mtime

    @property
    def final_status(self) -> str:
        """Status of a job that does not run any more."""
        if self.is_cancelled and self.exit_code != 0:
            return "STOPPED"
        return "SUCCEEDED" if self.exit_code == 0 else "FAILED"

    def log(self) -> str:
        """Return what the job has printed so far, in all its attempts."""
        path = self.path / LOG
        return path.read_text(errors="replace") if path.exists() else ""

    def follow(self, find: Callable[[], SubmittedJob], is_last: Callable[[str], bool]) -> Iterator[str]:
        """Yield the lines that the job prints until it ends or a line is the last one.

        Args:
            find: Returns the job as it is now.
            is_last: Whether a line is the last one to yield.
        """
        path, position, rest = self.path / LOG, 0, ""
        while True:
            ended = find().has_ended
            if path.exists():
                with path.open(encoding="utf-8", errors="replace") as file:
                    file.seek(position)
                    text = rest + file.read()
                    position = file.tell()
                *lines, rest = text.split("\n")
                for line in lines:
                    yield line
                    if is_last(line):
                        return
            if ended:
                if rest:
                    yield rest
                return
            time.sleep(_POLL_SECONDS)


def job_folders(storage: str) -> list[JobFolder]:
    """Return the folders of the jobs that were submitted to a storage folder, the newest first."""
    found = [JobFolder(path.parent) for path in Path(storage, "jobs").glob(f"*/{_RECORD}")]
    return sorted(found, key=lambda folder: folder.record["submitted"], reverse=True)
