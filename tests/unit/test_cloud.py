"""Clusters on clouds: their launcher files, how the head ends them, and jobs through a launcher that is scripted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from cluster import cloud_jobs, wait_for_nodes
from cluster.cloud_jobs import CloudJobs
from cluster.error import ClusterError
from cluster.job_files import JobFiles
from cluster.kinds import job_text
from cluster.launcher import check_launcher, cluster_name, launcher_file, launcher_text
from cluster.profiles import ClusterProfile

COMMON = {"storage": "/mnt/ttmoe", "mount": "10.0.0.2:/share", "head": "m6i.large", "worker": "g5.xlarge", "workers": 4,
          "gpus": 1, "setup": ["pip install 'ray[default]==2.60.0' # \"x\": {y}"]}  # fmt: skip
AWS = COMMON | {"kind": "aws", "region": "us-west-2"}
GCP = COMMON | {"kind": "gcp", "project": "p-1", "zone": "us-central1-a", "cpus": 8, "accelerator": "nvidia-tesla-t4",
                "image": "projects/p/global/images/family/f"}  # fmt: skip
KINDS = {"aws": AWS, "gcp": GCP}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return tmp_path


def profile(kind="aws", **changes):
    return TypeAdapter(ClusterProfile).validate_python(KINDS[kind] | changes)


def launcher(kind="aws", **changes):
    return yaml.safe_load(launcher_text(profile(kind, **changes)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"spot": False, "mount": None, "setup": []}])
def test_the_launcher_file_is_one_that_ray_takes(kind, changes):
    check_launcher(launcher_text(profile(kind, **changes)), "here")


@pytest.mark.parametrize("kind", KINDS)
def test_the_launcher_file_sets_what_people_forget(kind):
    config = launcher(kind, min_workers=2, idle_minutes=20)
    head, worker = (config["available_node_types"][name] for name in ("head", "worker"))
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0
    assert (worker["resources"]["GPU"], worker["min_workers"], worker["max_workers"]) == (1, 2, 4)
    assert (config["max_workers"], config["idle_timeout_minutes"]) == (4, 20)
    spot = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[kind]
    assert spot not in head["node_config"]
    assert "spot" in json.dumps(worker["node_config"][spot]).lower()
    assert "spot" not in json.dumps(launcher(kind, spot=False)["available_node_types"]).lower()
    assert config["provider"]["cache_stopped_nodes"] is False
    (start,) = (command for command in config["head_start_ray_commands"] if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0" in start
    assert config["setup_commands"] == list(COMMON["setup"])
    assert any("10.0.0.2:/share /mnt/ttmoe" in command for command in config["initialization_commands"])
    commands = [line for key, lines in config.items() if key.endswith("_commands") for line in lines]
    done = subprocess.run(["bash", "-n"], input="\n".join(commands), text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("max_workers: 4\n", "max_worker: 4\n"), ("max_workers: 4\n", "max_workers: many\n"),
     ("{CPU: 0, GPU: 0}", "none"), ("head_node_type: head", "head_node_type: chief"),
     ("    min_workers: 4", "    min_workers: 9"), ("    node_config:", "    machine:"),
     ("provider:\n  type: aws", "provider:\n  kind: aws"), ('ssh_user: "ubuntu"', "ssh_user: 1"),
     ("worker_setup_commands: []", "worker_setup_commands: pip"), ("auth:", "auth: ]"),
     ("provider:", "x: y\nprovider:")],
)  # fmt: skip
def test_a_wrong_launcher_file_is_refused(right, wrong):
    text = launcher_text(profile())
    assert right in text
    with pytest.raises(ClusterError, match="Ray would refuse the launcher file"):
        check_launcher(text.replace(right, wrong, 1), "here")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("aws", "region", "us west"), ("aws", "storage", "/a b"), ("aws", "mount", "host:/x; rm -r /"),
     ("aws", "workers", 0), ("aws", "min_workers", 5), ("aws", "python", "python3; x"),
     ("aws", "setup", ["a\nb"]), ("aws", "idle_minutes", 1), ("aws", "project", "p"),
     ("aws", "spot", "head"), ("gcp", "zone", "us-central1"), ("gcp", "gpus", 0),
     ("gcp", "image", "f'"), ("gcp", "cpus", 0)],
)  # fmt: skip
def test_a_wrong_profile_of_a_cloud_is_refused(kind, key, value):
    with pytest.raises(ValidationError) as caught:
        profile(kind, **{key: value})
    assert key in str(caught.value)


def test_a_changed_profile_is_another_cluster_and_its_token_is_not_written():
    assert cluster_name(profile()) == cluster_name(profile())
    assert cluster_name(profile(workers=5)) != cluster_name(profile())
    assert len(cluster_name(profile())) <= 47
    token = Path("~/.ray/auth_token").expanduser()
    assert launcher()["file_mounts"] == {}
    token.parent.mkdir()
    token.write_text("secret-of-mine")
    assert launcher()["file_mounts"] == {"~/.ray/auth_token": str(token)}
    assert "secret-of-mine" not in launcher_text(profile())
    assert launcher()["worker_start_ray_commands"][-1].startswith("export RAY_AUTH_MODE=token;")


def test_the_head_ends_all_machines_after_its_last_job(home):
    """The loop runs with programs that record their calls: three times, a job runs; once, the cloud does not answer."""
    programs = home / "bin"
    programs.mkdir()
    count = f"grep -c -e {{}} {home}/calls"
    scripts = {"sleep": "", "sudo": "", "pgrep": f'[ "$({count.format("pgrep")})" -le 3 ]',
               "python3": f'case "$*" in *-only*) [ "$({count.format("-only")})" -gt 1 ];; esac'}  # fmt: skip
    for name, body in scripts.items():
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {home}/calls\n{body}\n')
        (programs / name).chmod(0o755)
    command = launcher(idle_minutes=5)["head_start_ray_commands"][-1]
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", f"{command} wait"], env=env, check=True, timeout=60)
    calls = (home / "calls").read_text().splitlines()
    watched = [call for call in calls[:16] if call.startswith("sleep")]
    assert (len(watched), calls[1]) == (3 + 5, "pgrep -f [o]rchestrator[.]cli")
    config, ray = f"{home}/ray_bootstrap_config.yaml", "python3 -m ray.scripts.scripts"
    workers = f"{ray} down --yes --workers-only {config}"
    ends = [f"{ray} stop", workers, "sleep 60", workers, f"{ray} down --yes {config}", "sudo shutdown -h now"]
    assert calls[16:] == ends


def test_a_dry_run_shows_the_launcher_file():
    text = job_text(profile(), "lib-1", "python3 -m orchestrator.cli run config.yaml", JobFiles({}, {}, {}), {}, {})
    assert text.startswith(launcher_text(profile()))
    assert yaml.safe_load(text) == launcher()
    assert "cluster.wait_for_nodes 5 1800 && python3 -m orchestrator.cli run config.yaml" in text


@pytest.fixture
def place(home, monkeypatch):
    """A machine that has what a launcher needs, and a scripted one; it records its calls."""
    script = Path(__file__).with_name("cloud_launcher.py")
    monkeypatch.setattr(cloud_jobs, "_RAY", (sys.executable, str(script), str(home)))
    monkeypatch.setattr(cloud_jobs, "_PROGRAMS", ("sh",))
    monkeypatch.setattr(cloud_jobs, "SDKS", {"aws": ("json", "json"), "gcp": ("json", "json")})
    return home


def calls(place):
    return (place / "calls").read_text().split()


def test_a_job_starts_the_cluster_once_and_reaches_it_through_a_tunnel(place):
    jobs = CloudJobs(profile())
    assert jobs.all() == []  # nothing runs, and nothing is started to ask
    assert calls(place) == ["get-head-ip"]
    jobs.submit("lib-1", "true", JobFiles(texts={"a.txt": "a"}), {"HF_TOKEN": "s3cret"}, {"library": "lib"})
    assert calls(place) == ["get-head-ip", "get-head-ip", "up", "get-head-ip", "dashboard"]
    request = json.loads((place / "request.json").read_text())
    assert request["entrypoint"] == "python3 -m cluster.wait_for_nodes 5 1800 && true"
    assert (request["submission_id"], request["metadata"]) == ("lib-1", {"library": "lib"})
    assert yaml.safe_load(launcher_file(profile()).read_text()) == launcher()
    assert "s3cret" not in launcher_file(profile()).read_text()
    del jobs  # its tunnel ends with it
    again = CloudJobs(profile())
    again.submit("lib-2", "true", JobFiles(), {}, {})
    assert calls(place).count("up") == 1


def test_what_is_missing_is_said_before_anything_starts(place, monkeypatch):
    (place / "broken").write_text("get-head-ip")
    with pytest.raises(ClusterError, match=r"the cloud does not say what runs: .*NoCredentialsError") as caught:
        CloudJobs(profile()).all()
    assert "credentials for aws" in caught.value.fix
    monkeypatch.setattr(cloud_jobs, "SDKS", {"aws": ("no_such_sdk", "the-sdk")})
    with pytest.raises(ClusterError, match="no package no_such_sdk") as caught:
        CloudJobs(profile())
    assert caught.value.fix == "pip install the-sdk"
    monkeypatch.setattr(cloud_jobs, "_PROGRAMS", ("ssh-of-nobody",))
    with pytest.raises(ClusterError, match="this machine has no ssh-of-nobody"):
        CloudJobs(profile())
    assert "up" not in calls(place)


def test_a_launcher_file_that_ray_would_refuse_starts_nothing(place, monkeypatch):
    monkeypatch.setattr(cloud_jobs, "launcher_text", lambda profile: "cluster_name: x\ncolour: red\n")
    with pytest.raises(ClusterError, match=r"'colour' was unexpected|'provider' is a required"):
        CloudJobs(profile())
    assert not launcher_file(profile()).exists()


@pytest.mark.parametrize(("mode", "asked"), [(None, "disabled"), ("token", "token")])
def test_a_job_waits_with_the_authentication_of_its_cluster(mode, asked, monkeypatch):
    modes = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", mode) if mode else monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(wait_for_nodes, "health_error", lambda address, mode: modes.append(mode) or "no answer")
    with pytest.raises(ClusterError, match="does not start"):
        wait_for_nodes.wait_for_nodes(5, seconds=-1)
    assert modes == [asked]


def test_a_cluster_that_cannot_be_set_up_is_ended(place):
    (place / "broken").write_text("up")
    with pytest.raises(ClusterError, match="`ray up` failed") as caught:
        CloudJobs(profile()).submit("lib-1", "true", JobFiles(), {}, {})
    assert calls(place)[-2:] == ["up", "down"]
    assert caught.value.fix == "correct the cause above"
    (place / "broken").write_text("up down")
    with pytest.raises(ClusterError, match="`ray up` failed") as caught:
        CloudJobs(profile()).submit("lib-1", "true", JobFiles(), {}, {})
    assert f"machines may run: end them with `ray down {launcher_file(profile())}`" in caught.value.fix


def test_an_interrupted_start_is_ended(place, monkeypatch):
    run = subprocess.run

    def interrupted(command, **options):
        if "up" in command:
            raise KeyboardInterrupt
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CloudJobs(profile()).submit("lib-1", "true", JobFiles(), {}, {})
    assert calls(place) == ["get-head-ip", "down"]


def test_a_head_that_is_not_reached_and_one_that_does_not_run_are_said(place):
    (place / "head").touch()
    (place / "broken").write_text("dashboard")
    with pytest.raises(ClusterError, match="no tunnel to the head"):
        CloudJobs(profile()).all()
    (place / "head").unlink()
    with pytest.raises(ClusterError, match="it ends 15 minutes after its last job"):
        CloudJobs(profile()).log("lib-1")
