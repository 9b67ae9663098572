"""Jobs of a Slurm cluster: each has a folder in the shared storage, and starts a Ray cluster of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from cluster.error import ClusterError
from cluster.job_files import JobFiles
from cluster.jobs import JOB_VARIABLE, SubmittedJob, require_job
from cluster.profiles import SlurmProfile

SCRIPT, LOG = "job.sh", "log.txt"
_RECORD, _CANCELLED, _EXIT_CODE = "job.json", "cancelled", "exit_code"
_QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_ACTIVE = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED")
_POLL_SECONDS = 1.0


class SlurmJobs:
    """The jobs of a Slurm cluster that were submitted with this storage; see ``ClusterJobs``.

    Args:
        profile: The cluster.

    Raises:
        ClusterError: If this machine has no Slurm, or cannot write to the storage.
    """

    def __init__(self, profile: SlurmProfile) -> None:
        if shutil.which("sbatch") is None:
            fix = "submit on the login node of the cluster, where `sbatch` is"
            raise ClusterError("this machine has no sbatch", where="clusters, kind: slurm", fix=fix)
        self.profile, self.folder = profile, Path(profile.storage) / "jobs"
        self.place = f"Slurm, {self.folder}"

    def submit(
        self, job_id: str, command: str, files: JobFiles, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Write the job's files and script into its folder, and queue it."""
        folder = job_folder(self.profile, job_id)
        files.write(folder)
        (folder / SCRIPT).write_text(slurm_script(self.profile, job_id, command, folder))
        # The environment is passed on by sbatch, so no value is written anywhere.
        done = _call(["sbatch", "--parsable", str(folder / SCRIPT)], {**os.environ, **env})
        record = {"slurm": done.strip().split(";")[0], "submitted": time.time(), "metadata": dict(metadata)}
        (folder / _RECORD).write_text(json.dumps(record))

    def all(self) -> list[SubmittedJob]:
        """Return the jobs of the storage, the newest first."""
        records = {path.parent: json.loads(path.read_text()) for path in self.folder.glob(f"*/{_RECORD}")}
        if not records:
            return []
        listed = _call(["squeue", "--noheader", "--states=all", "--format=%A %T %S", "--me"])
        states = {job: (state, start) for job, state, start in map(str.split, listed.splitlines())}
        found = [
            _submitted(folder, record, *states.get(record["slurm"], ("", ""))) for folder, record in records.items()
        ]
        return sorted(found, key=lambda job: records[self.folder / job.id]["submitted"], reverse=True)

    def log(self, job_id: str) -> str:
        """Return what the job has printed so far, in all its attempts."""
        path = job_folder(self.profile, job_id) / LOG
        return path.read_text(errors="replace") if path.exists() else ""

    def follow(self, job_id: str, is_last: Callable[[str], bool] = lambda line: False) -> Iterator[str]:
        """Yield the lines that the job prints until it ends or a line is the last one."""
        path, position, rest = job_folder(self.profile, job_id) / LOG, 0, ""
        while True:
            ended = require_job(self, job_id).has_ended
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

    def stop(self, job_id: str) -> SubmittedJob:
        """Stop a job as SIGTERM does, without queueing it again, and return it when it has ended."""
        folder = job_folder(self.profile, job_id)
        (folder / _CANCELLED).touch()
        number = json.loads((folder / _RECORD).read_text())["slurm"]
        if require_job(self, job_id).status == "PENDING":
            _call(["scancel", number])
        else:
            _call(["scancel", "--batch", "--signal=TERM", number])
        while not (job := require_job(self, job_id)).has_ended:
            time.sleep(_POLL_SECONDS)
        return job

    def page(self, job_id: str) -> None:
        """Slurm has no pages."""


def job_folder(profile: SlurmProfile, job_id: str) -> Path:
    """Return the folder of a job in the shared storage."""
    return Path(profile.storage, "jobs", job_id)


def slurm_script(profile: SlurmProfile, job_id: str, command: str, folder: Path) -> str:
    """Return the script of a job.

    Args:
        profile: The cluster.
        job_id: Id of the job.
        command: Shell command of the job.
        folder: Its folder in the shared storage.
    """
    templates = Environment(
        loader=PackageLoader("cluster"), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
        keep_trailing_newline=True, autoescape=False,  # it is no HTML; what is quoted is quoted for a shell
    )  # fmt: skip
    return templates.get_template("slurm.sh.j2").render(
        profile=profile,
        name=job_id,
        folder=folder,
        folder_quoted=shlex.quote(str(folder)),
        python_quoted=shlex.quote(profile.python),
        command_quoted=shlex.quote(command),
        job_variable=JOB_VARIABLE,
        log=LOG,
        cancelled=_CANCELLED,
        exit_code=_EXIT_CODE,
    )


def _submitted(folder: Path, record: Mapping[str, object], state: str, start: str) -> SubmittedJob:
    """Return the job of a folder. Slurm forgets a job minutes after its end; the script leaves its exit code."""
    code_file = folder / _EXIT_CODE
    code = int(code_file.read_text()) if code_file.exists() and code_file.stat().st_size else None
    if state in _QUEUED:
        status = "PENDING"
    elif state in _ACTIVE:
        status = "RUNNING"
    elif (folder / _CANCELLED).exists() and code != 0:
        status = "STOPPED"
    else:
        status = "SUCCEEDED" if code == 0 else "FAILED"
    started = time.mktime(time.strptime(start, "%Y-%m-%dT%H:%M:%S")) if start[:1].isdigit() else None
    ended = code_file.stat().st_mtime if code is not None else None
    metadata = {**dict(record["metadata"]), "slurm": str(record["slurm"])}  # type: ignore[call-overload]
    message = f"Slurm's job {record['slurm']}" + (f" is {state}" if state else "")
    return SubmittedJob(folder.name, status, message, metadata, started, ended, code)


def _call(command: list[str], env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())
        raise ClusterError(f"{command[0]} failed: {reason}", where="Slurm", fix="see the cluster's documentation")
    return done.stdout
