"""Jobs of a Slurm cluster: each has a folder in the shared storage, and starts a Ray cluster of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.error import ClusterError
from cluster.job_files import JobFiles
from cluster.job_folders import CANCELLED, EXIT_CODE, LOG, SCRIPT, JobFolder, job_folders
from cluster.jobs import JOB_VARIABLE, SubmittedJob, require_job
from cluster.profiles import SlurmProfile
from cluster.rendering import render_template

_QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_ACTIVE = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED")
_POLL_SECONDS = 1.0


class SlurmJobs:
    """The jobs of a Slurm cluster that were submitted with this storage; see ``ClusterJobs``.

    Args:
        profile: The cluster.

    Raises:
        ClusterError: If this machine has no Slurm.
    """

    def __init__(self, profile: SlurmProfile) -> None:
        if shutil.which("sbatch") is None:
            fix = "submit on the login node of the cluster, where `sbatch` is"
            raise ClusterError("this machine has no sbatch", where="clusters, kind: slurm", fix=fix)
        self.profile, self.place = profile, f"Slurm, {profile.storage}/jobs"

    def submit(
        self, job_id: str, command: str, files: JobFiles, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Write the job's files and script into its folder, and queue it.

        The record is there before the job is queued; a job whose number it does not have is known by its name.
        """
        folder = self._folder(job_id)
        files.write(folder.path)
        script = folder.path / SCRIPT
        script.write_text(slurm_script(self.profile, job_id, command))
        folder.write_record(metadata)
        # The environment is passed on by sbatch, so no value is written anywhere.
        try:
            number = _call(["sbatch", "--parsable", str(script)], {**os.environ, **env}).strip().split(";")[0]
        except ClusterError:
            shutil.rmtree(folder.path)  # Slurm refused it: there is no such job
            raise
        folder.write_record(metadata, slurm=number)

    def all(self) -> list[SubmittedJob]:
        """Return the jobs of the storage, the newest first."""
        folders = job_folders(self.profile.storage)
        if not folders:
            return []
        listed = _call(["squeue", "--noheader", "--states=all", "--format=%A %T %S %j", "--me"])
        states = [_Listed(*line.split(maxsplit=3)) for line in listed.splitlines()]
        return [_submitted(folder, states) for folder in folders]

    def log(self, job_id: str) -> str:
        """Return what the job has printed so far, in all its attempts."""
        return self._folder(job_id).log()

    def follow(self, job_id: str, is_last: Callable[[str], bool] = lambda line: False) -> Iterator[str]:
        """Yield the lines that the job prints until it ends or a line is the last one."""
        return self._folder(job_id).follow(lambda: require_job(self, job_id), is_last)

    def stop(self, job_id: str) -> SubmittedJob:
        """Stop a job as SIGTERM does, without queueing it again, and return it when it has ended."""
        self._folder(job_id).cancel()
        job = require_job(self, job_id)
        if job.status == "PENDING":
            _call(["scancel", job.metadata["slurm"]])
        elif not job.has_ended:
            _call(["scancel", "--batch", "--signal=TERM", job.metadata["slurm"]])
        while not (job := require_job(self, job_id)).has_ended:
            time.sleep(_POLL_SECONDS)
        return job

    def page(self, job_id: str) -> None:
        """Slurm has no pages."""

    def _folder(self, job_id: str) -> JobFolder:
        return JobFolder.of(self.profile.storage, job_id)


def slurm_script(profile: SlurmProfile, job_id: str, command: str) -> str:
    """Return the script of a job.

    Args:
        profile: The cluster.
        job_id: Id of the job.
        command: Shell command of the job.
    """
    folder = JobFolder.of(profile.storage, job_id)
    return render_template(
        "slurm.sh.j2",
        profile=profile,
        name=job_id,
        folder=folder.path,
        folder_quoted=folder.quoted(),
        python_quoted=shlex.quote(profile.python),
        command_quoted=shlex.quote(command),
        job_variable=JOB_VARIABLE,
        log=LOG,
        cancelled=CANCELLED,
        exit_code=EXIT_CODE,
    )


@dataclass(frozen=True)
class _Listed:
    """A job as squeue lists it."""

    number: str
    state: str
    start: str
    name: str


def _submitted(folder: JobFolder, states: Sequence[_Listed]) -> SubmittedJob:
    """Return the job of a folder. Slurm forgets a job minutes after its end; the script leaves its exit code."""
    record = folder.record
    number = record.get("slurm")
    named = [each for each in states if (each.number == number if number else each.name == folder.path.name)]
    listed = named[-1] if named else _Listed(number or "", "", "", "")
    if listed.state in _QUEUED:
        status = "PENDING"
    elif listed.state in _ACTIVE:
        status = "RUNNING"
    else:
        status = folder.final_status
    started = time.mktime(time.strptime(listed.start, "%Y-%m-%dT%H:%M:%S")) if listed.start[:1].isdigit() else None
    message = f"Slurm's job {listed.number}" + (f" is {listed.state}" if listed.state else "")
    metadata = {**record["metadata"], "slurm": listed.number}
    return SubmittedJob(
        folder.path.name,
        status,
        message if listed.number else "it was not queued",
        metadata,
        started,
        folder.ended,
        folder.exit_code,
    )


def _call(command: list[str], env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())
        raise ClusterError(f"{command[0]} failed: {reason}", where="Slurm", fix="see the cluster's documentation")
    return done.stdout
