"""A Slurm cluster of two nodes on this machine, as its administrator would start it, with a key of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny
ReturnToService=2
SchedulerParameters=bf_interval=1,sched_interval=1,requeue_delay=1
OverTimeLimit=0
KillWait=30
MpiDefault=none
JobRequeue=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=8000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def is_installed() -> bool:
    """Return whether Slurm and munge are installed, and may be started: it takes root."""
    return os.geteuid() == 0 and all(map(_path, PROGRAMS))


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start a cluster with its files in ``folder``; yield the environment in which its commands find it."""
    (folder / "state").mkdir(parents=True)
    ports = [_free_port() for _ in range(3)]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname().partition(".")[0], ports=ports, folder=folder))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    folder.chmod(0o755)
    env = {**os.environ, "SLURM_CONF": str(config)}
    munge = ["--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
             f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
             f"--seed-file={folder}/seed"]  # fmt: skip
    started = [_start("munged", *munge, env=env)]
    try:
        _wait(lambda: (folder / "munge.socket").exists())
        started.append(_start("slurmctld", "-i", "-D", env=env))
        started += [_start("slurmd", "-D", "-N", node, env=env) for node in ("n1", "n2")]
        _wait(lambda: _idle_nodes(env) == 2)
        yield {"SLURM_CONF": str(config)}
    finally:
        subprocess.run(["scancel", "--full", "--signal=KILL", "--user=root"], env=env, check=False, capture_output=True)
        subprocess.run(["scancel", "--user=root"], env=env, check=False, capture_output=True)
        for process in [*started[2:], *started[1:2], *started[:1]]:
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _path(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _start(program: str, *arguments: str, env: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen([str(_path(program)), *arguments], env=env, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip


def _idle_nodes(env: dict[str, str]) -> int:
    done = subprocess.run(["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"], env=env,
                          capture_output=True, text=True, check=False)  # fmt: skip
    return len(done.stdout.split())


def _wait(condition: object, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends, "Slurm does not start"
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
