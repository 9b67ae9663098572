"""Jobs of a Ray cluster, over its Jobs API."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.attaching import AUTH_MODE, has_token, token_error
from cluster.error import ClusterError
from cluster.job_files import JobFiles
from cluster.jobs import JOB_VARIABLE, SubmittedJob, require_job
from cluster.local import authentication

_STOP_SECONDS = 60  # in which a driver that is stopped ends its MLflow runs; Ray's own limit is 3 seconds
_POLL_SECONDS = 1.0
_START_SECONDS = 60  # in which a cluster that has just started must take a job
_TALKATIVE = (  # loggers of Ray that print each upload and connection
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


class RayJobs:
    """The jobs of a running Ray cluster; see ``ClusterJobs``.

    Args:
        address: Address of its dashboard.

    Raises:
        ClusterError: If the cluster does not answer, asks for another token, or has another version of Ray.
    """

    def __init__(self, address: str) -> None:
        self.place = address
        self._client, self._mode = _connect(address)

    def submit(
        self, job_id: str, command: str, files: JobFiles, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Submit a job."""
        with TemporaryDirectory(prefix="ttmoe-job-") as folder, authentication(self._mode):
            files.write(Path(folder))
            environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS), JOB_VARIABLE: job_id, **env}
            ends = time.monotonic() + _START_SECONDS
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=command,
                        submission_id=job_id,
                        runtime_env={"working_dir": folder, "env_vars": environment},
                        metadata=dict(metadata),
                    )
                    return
                except RuntimeError as error:
                    # A cluster that has just started answers before it takes jobs.
                    if "No available agent" not in str(error) or time.monotonic() > ends:
                        what = f"the cluster refuses the job: {' '.join(str(error).split())}"
                        raise ClusterError(what, where=self.place, fix="see the cluster's dashboard") from None
                time.sleep(_POLL_SECONDS)

    def all(self) -> list[SubmittedJob]:
        """Return the jobs that were submitted, the newest first."""
        found = [_submitted(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0, reverse=True)

    def log(self, job_id: str) -> str:
        """Return what the job has printed so far."""
        return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, is_last: Callable[[str], bool] = lambda line: False) -> Iterator[str]:
        """Yield the lines that the job prints, from the first one on, until it ends or a line is the last one."""
        seen, rest = 0, ""
        with authentication(self._mode), asyncio.Runner() as runner:
            while True:
                ended, chunks = require_job(self, job_id).has_ended, self._client.tail_job_logs(job_id)
                position = 0
                try:
                    while (chunk := runner.run(_next(chunks))) is not None:
                        new = chunk[max(0, seen - position) :]
                        position += len(chunk)
                        seen = max(seen, position)
                        *lines, rest = (rest + new).split("\n")
                        for line in lines:
                            yield line
                            if is_last(line):
                                return
                except (RuntimeError, OSError):  # the connection was lost
                    ended = False
                if ended or require_job(self, job_id).has_ended:
                    if rest:
                        yield rest
                    return
                time.sleep(_POLL_SECONDS)

    def stop(self, job_id: str) -> SubmittedJob:
        """Stop a job as SIGTERM does, and return it when it has ended."""
        self._client.stop_job(job_id)
        while not (job := require_job(self, job_id)).has_ended:
            time.sleep(_POLL_SECONDS)
        return job

    def page(self, job_id: str) -> str:
        """Return the address of the job's page in the dashboard."""
        return f"{self.place}/#/jobs/{job_id}"


async def _next(chunks: Any) -> str | None:
    return await anext(chunks, None)


def _submitted(details: Any) -> SubmittedJob:
    return SubmittedJob(
        details.submission_id,
        details.status.value,
        details.message or "",
        details.metadata or {},
        details.start_time / 1000 if details.start_time else None,
        details.end_time / 1000 if details.end_time else None,
        details.driver_exit_code,
    )


def _connect(address: str) -> tuple[Any, str]:
    """Return a client of the cluster, and the mode of authentication that it asks for."""
    import ray
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    mode = os.environ.get(AUTH_MODE) or ("token" if has_token() else "disabled")
    try:
        with authentication(mode):  # a cluster without authentication ignores a token
            client = JobSubmissionClient(address)
            version = client._do_request("GET", "/api/version").json().get("ray_version")
    except (ConnectionError, RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        if "401" in reason or "403" in reason or "uthenticat" in reason:
            raise token_error(address) from None
        fix = "correct the address of the cluster's dashboard, or open a way to it (ssh -L, kubectl port-forward)"
        raise ClusterError(f"no Ray dashboard answers ({reason})", where=address, fix=fix) from None
    if version != ray.__version__:
        what = f"the cluster has Ray {version}, this machine {ray.__version__}"
        raise ClusterError(what, where=address, fix=f"install ray[default]=={version} here, or the same version there")
    return client, mode
