"""Jobs of this machine: followed, stopped in order, and listed after their process is gone."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest
import tiny

from cluster.job_files import JobFiles
from cluster.jobs import require_job
from cluster.local_jobs import LocalJobs
from cluster.profiles import LocalProfile, SlurmProfile
from cluster.slurm_jobs import SlurmJobs

NOTHING = JobFiles({}, {"config.yaml": "library: lib\n"}, {})
# Named as the command line of ttmoe, which gets the signal.
WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def jobs(tmp_path):
    return LocalJobs(LocalProfile(kind="local", storage=str(tmp_path)))


def submit(jobs, job_id, command):
    jobs.submit(job_id, command, NOTHING, {"SECRET": "s3cr3t"}, {"library": "lib"})


def test_a_job_has_its_files_and_environment_and_leaves_its_output_and_code(jobs, tmp_path):
    submit(jobs, "a", "cat config.yaml; echo $TTMOE_JOB $SECRET; exit 4")
    assert list(jobs.follow("a")) == ["library: lib", "a s3cr3t"]
    job = require_job(jobs, "a")
    assert (job.status, job.exit_code, job.metadata) == ("FAILED", 4, {"library": "lib"})
    assert "s3cr3t" not in (tmp_path / "jobs" / "a" / "job.json").read_text()
    submit(jobs, "b", "true")
    list(jobs.follow("b"))
    assert [(each.id, each.status) for each in jobs.all()] == [("b", "SUCCEEDED"), ("a", "FAILED")]


@pytest.mark.parametrize("before", ["", "sleep 0 && exec "])
def test_a_job_is_stopped_in_order(jobs, before):
    submit(jobs, "a", f"{before}{shlex.quote(sys.executable)} -c {shlex.quote(WAITS)} orchestrator.cli")
    assert next(jobs.follow("a")) == "ready"
    assert require_job(jobs, "a").status == "RUNNING"
    assert (jobs.stop("a").status, jobs.log("a")) == ("STOPPED", "ready\nsaved\n")


def test_a_job_outlives_the_command_that_submitted_it(jobs, tmp_path):
    code = ("import sys; from cluster.local_jobs import *; from cluster.profiles import LocalProfile\n"
            f"LocalJobs(LocalProfile(kind='local', storage={str(tmp_path)!r})).submit("
            "'a', 'sleep 1; echo later', JobFiles({}, {'config.yaml': ''}, {}), {}, {})")  # fmt: skip
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(jobs.follow("a")) == ["later"]
    assert jobs.all()[0].status == "SUCCEEDED"


def test_a_job_whose_process_was_killed_has_failed(jobs, tmp_path):
    submit(jobs, "a", "sleep 60")
    record = json.loads((tmp_path / "jobs" / "a" / "job.json").read_text())
    subprocess.run(["pkill", "-KILL", "-s", str(record["process"])], check=True)
    assert tiny.wait_for(lambda: jobs.all()[0].status == "FAILED", 20)
    assert jobs.all()[0].exit_code is None


@pytest.mark.parametrize("crashes", ["before it is queued", "before its number is known", ""])
def test_slurm_jobs_are_known_from_before_they_are_queued(crashes, tmp_path, monkeypatch):
    """sbatch is a script that lists the job's name for squeue, or fails; a crash is an exception of the driver's."""
    programs = {"sbatch": f"echo 17 RUNNING N/A a > {tmp_path}/queue; echo 17", "squeue": f"cat {tmp_path}/queue"}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "queue").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    profile = SlurmProfile(kind="slurm", storage=str(tmp_path), cpus_per_node=1, time="1:00")
    slurm, real, calls = SlurmJobs(profile), subprocess.run, []

    def run(*arguments, **options):
        calls.append(1)
        if crashes == "before it is queued":
            raise KeyboardInterrupt
        done = real(*arguments, **options)
        if crashes and len(calls) == 1:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr("cluster.slurm_jobs.subprocess.run", run)
    if crashes:
        with pytest.raises(KeyboardInterrupt):
            submit(slurm, "a", "true")
        monkeypatch.setattr("cluster.slurm_jobs.subprocess.run", real)
    else:
        submit(slurm, "a", "true")
    (job,) = slurm.all()
    expected = (
        ("FAILED", "it was not queued")
        if crashes == "before it is queued"
        else ("RUNNING", "Slurm's job 17 is RUNNING")
    )
    assert (job.status, job.message) == expected
