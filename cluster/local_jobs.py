"""Jobs of this machine: each is a process that outlives the command which submitted it, with a folder of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping

import psutil

from cluster.job_files import JobFiles
from cluster.job_folders import EXIT_CODE, LOG, SCRIPT, JobFolder, job_folders
from cluster.jobs import JOB_VARIABLE, SubmittedJob, require_job
from cluster.profiles import LocalProfile

_POLL_SECONDS = 0.2
# SIGTERM of `ttmoe jobs cancel` ends the command as Ctrl-C does; the shell waits for it to end in order.
_SCRIPT = f"""\
sh -c "$1" &
run=$!
trap 'kill -TERM $(pgrep -P "$run" -f orchestrator.cli || echo "$run")' TERM
wait "$run"
code=$?
while kill -0 "$run" 2>/dev/null; do
    wait "$run"
    code=$?
done
echo "$code" >{EXIT_CODE}
"""


class LocalJobs:
    """The jobs of this machine with this storage; see ``ClusterJobs``."""

    def __init__(self, profile: LocalProfile) -> None:
        self.profile, self.place = profile, f"this machine, {profile.storage}/jobs"

    def submit(
        self, job_id: str, command: str, files: JobFiles, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Write the job's files into its folder, and start its process, which has this process's environment too."""
        folder = self._folder(job_id)
        files.write(folder.path)
        script = folder.path / SCRIPT
        script.write_text(_SCRIPT)
        folder.write_record(metadata, process=0, began=0.0)  # so that it is listed from its start on
        path = os.pathsep.join(filter(None, [str(folder.path), os.environ.get("PYTHONPATH")]))
        with (folder.path / LOG).open("ab") as log:
            process = subprocess.Popen(
                ["sh", script, command], cwd=folder.path, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **env, JOB_VARIABLE: job_id, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        folder.write_record(metadata, process=process.pid, began=psutil.Process(process.pid).create_time())
        process.returncode = 0  # it goes on when this process ends: no warning that nobody waits for it

    def all(self) -> list[SubmittedJob]:
        """Return the jobs of the storage, the newest first."""
        return [_submitted(folder) for folder in job_folders(self.profile.storage)]

    def log(self, job_id: str) -> str:
        """Return what the job has printed so far."""
        return self._folder(job_id).log()

    def follow(self, job_id: str, is_last: Callable[[str], bool] = lambda line: False) -> Iterator[str]:
        """Yield the lines that the job prints until it ends or a line is the last one."""
        return self._folder(job_id).follow(lambda: require_job(self, job_id), is_last)

    def stop(self, job_id: str) -> SubmittedJob:
        """Stop a job as SIGTERM does, and return it when it has ended."""
        folder = self._folder(job_id)
        folder.cancel()
        if process := _process(folder):
            process.terminate()
        while not (job := require_job(self, job_id)).has_ended:
            time.sleep(_POLL_SECONDS)
        return job

    def page(self, job_id: str) -> None:
        """Return None: a process has no page."""

    def _folder(self, job_id: str) -> JobFolder:
        return JobFolder.of(self.profile.storage, job_id)


def _submitted(folder: JobFolder) -> SubmittedJob:
    record = folder.record
    runs = _process(folder) is not None
    message = f"process {record['process']}"
    status, code, ended = ("RUNNING", None, None) if runs else (folder.final_status, folder.exit_code, folder.ended)
    return SubmittedJob(folder.path.name, status, message, record["metadata"], record["submitted"], ended, code)


def _process(folder: JobFolder) -> psutil.Process | None:
    """Return the process of a job if it runs; its number alone may be another one's by now."""
    record = folder.record
    try:
        process = psutil.Process(record["process"])
        runs = process.create_time() == record["began"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if runs else None
