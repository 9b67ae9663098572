"""Jobs of a cluster on a cloud, which Ray's launcher starts for them and which ends by itself after the last one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import IO

from cluster.cloud_profiles import CloudProfile
from cluster.error import ClusterError
from cluster.job_files import JobFiles
from cluster.jobs import SubmittedJob
from cluster.launcher import SDKS, check_launcher, cluster_name, launcher_file, launcher_text
from cluster.ray_jobs import RayJobs

_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_PROGRAMS = ("ssh", "rsync")
_START_SECONDS = 1800  # in which new machines install their packages and join
_TUNNEL_SECONDS = 60
_NO_HEAD = re.compile(r"Head node of cluster .* not found")


class CloudJobs:
    """The jobs of a cluster on a cloud; see ``ClusterJobs``. Its dashboard is reached through SSH.

    Args:
        profile: The cluster.

    Raises:
        ClusterError: If this machine lacks what starts such clusters, or Ray would refuse the launcher file.
    """

    def __init__(self, profile: CloudProfile) -> None:
        _require_programs(profile)
        self.profile, self.file = profile, launcher_file(profile)
        self.place = f"{cluster_name(profile)} on {profile.kind}"
        text = launcher_text(profile)
        check_launcher(text, self.place)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(text, encoding="utf-8")
        self._connected: RayJobs | None = None

    def submit(
        self, job_id: str, command: str, files: JobFiles, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Start the cluster unless it runs, and submit a job that waits for the workers."""
        if self._connect() is None:
            self._start()
        self._require().submit(job_id, waiting_command(self.profile, command), files, env, metadata)

    def all(self) -> list[SubmittedJob]:
        """Return the jobs that were submitted, the newest first; none if the cluster does not run."""
        jobs = self._connect()
        return [] if jobs is None else jobs.all()

    def log(self, job_id: str) -> str:
        """Return what the job has printed so far."""
        return self._require().log(job_id)

    def follow(self, job_id: str, is_last: Callable[[str], bool] = lambda line: False) -> Iterator[str]:
        """Yield the lines that the job prints until it ends or a line is the last one."""
        return self._require().follow(job_id, is_last)

    def stop(self, job_id: str) -> SubmittedJob:
        """Stop a job as SIGTERM does, and return it when it has ended."""
        return self._require().stop(job_id)

    def page(self, job_id: str) -> str:
        """Return the address of the job's page, and the command that makes it reachable."""
        return f"http://127.0.0.1:8265/#/jobs/{job_id} (with `ray dashboard {self.file}`)"

    def _start(self) -> None:
        """Start the machines. Those of a start that fails or is interrupted are ended: they would cost on."""
        code: int | None = None
        try:
            # Ray prints each step to the terminal: they take minutes.
            code = subprocess.run([*_RAY, "up", "--yes", str(self.file)], stdout=sys.stderr, check=False).returncode
        finally:
            if code != 0:
                ended = subprocess.run([*_RAY, "down", "--yes", str(self.file)], stdout=sys.stderr, check=False)
        if code:
            fix = "correct the cause above"
            if ended.returncode:
                fix += f"; machines may run: end them with `ray down {self.file}`"
            raise ClusterError("`ray up` failed", where=self.place, fix=fix)

    def _require(self) -> RayJobs:
        jobs = self._connect()
        if jobs is None:
            what = f"the cluster does not run: it ends {self.profile.idle_minutes} minutes after its last job"
            raise ClusterError(what, where=self.place, fix="see `ttmoe status` and MLflow, or submit again to continue")
        return jobs

    def _connect(self) -> RayJobs | None:
        """Return the jobs of the cluster's head; None if it has no head."""
        if self._connected is None:
            found = subprocess.run([*_RAY, "get-head-ip", str(self.file)], capture_output=True, text=True, check=False)
            if found.returncode:
                if _NO_HEAD.search(found.stderr):
                    return None
                reason = " ".join(found.stderr.split())[-400:]
                fix = f"check the credentials for {self.profile.kind} on this machine"
                raise ClusterError(f"the cloud does not say what runs: {reason}", where=self.place, fix=fix)
            address = self._open_tunnel()
            try:
                self._connected = RayJobs(address)
            except ClusterError as error:
                fix = f"{error.fix}; `ray down {self.file}` ends the cluster, and submitting again starts another"
                raise ClusterError(error.what, where=self.place, fix=fix) from None
        return self._connected

    def _open_tunnel(self) -> str:
        """Return the local address of the head's dashboard, forwarded until this process ends."""
        port, ends = _free_port(), time.monotonic() + _TUNNEL_SECONDS
        output = TemporaryFile()  # noqa: SIM115  it lives as long as the tunnel
        command = [*_RAY, "dashboard", str(self.file), "--port", str(port)]
        tunnel = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                  start_new_session=True)  # fmt: skip
        weakref.finalize(self, _end, tunnel, output)
        while not _listens(port):
            if tunnel.poll() is not None or time.monotonic() > ends:
                output.seek(0)
                reason = " ".join(output.read().decode(errors="replace").split())[-400:]
                fix = "check that the head's port 22 is reachable from here, with the key that started it"
                raise ClusterError(f"no tunnel to the head: {reason}", where=self.place, fix=fix)
            time.sleep(0.1)
        return f"http://127.0.0.1:{port}"


def waiting_command(profile: CloudProfile, command: str) -> str:
    """Return a job's command, preceded by a wait for the workers: it plans with the machines that are there."""
    nodes = profile.waited_workers + 1
    return f"{profile.python} -m cluster.wait_for_nodes {nodes} {_START_SECONDS} && {command}"


def _require_programs(profile: CloudProfile) -> None:
    where = f"clusters, kind: {profile.kind}"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        what = f"this machine has no {' and no '.join(missing)}"
        raise ClusterError(what, where=where, fix="install it: Ray reaches the machines by it")
    module, package = SDKS[profile.kind]
    if find_spec(module) is None:
        what = f"this machine has no package {module}"
        raise ClusterError(what, where=where, fix=f"pip install {package}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def _end(tunnel: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    """End the tunnel with the ssh that it has started."""
    if tunnel.poll() is None:
        os.killpg(tunnel.pid, 15)
        tunnel.wait()
    output.close()
