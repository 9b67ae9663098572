"""What is submitted: the config as the cluster sees it, data, code, and an id by which a repetition is recognised."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import tiny
import yaml
from pydantic import TypeAdapter, ValidationError

from cluster import job_files
from cluster.error import ClusterError
from cluster.jobs import SubmittedJob
from cluster.profiles import ClusterProfile, RayProfile, SlurmProfile
from cluster.slurm_jobs import slurm_script
from orchestrator.api import submit
from orchestrator.config.clusters import clusters_file, find_cluster
from orchestrator.config.loading import load_config
from orchestrator.submit import submission
from orchestrator.submit.job_package import CONFIG_FILE, pack_job
from orchestrator.submit.submission_screen import show_dry_run, show_submission
from ttmoe.errors import InputError

ADDRESS = "http://head:8265"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config with data of two tasks and a base; the data of the second lies in the shared storage."""
    for name in ("MLFLOW_TRACKING_URI", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    shared = tmp_path / "shared"
    for folder in (shared, tmp_path / "base"):
        folder.mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    tiny.write_texts(tmp_path / "a.jsonl", tiny.COLOURS, "north", 30)
    tiny.write_texts(shared / "b.jsonl", tiny.COLOURS, "south", 30)
    tasks = {"a": tiny.text_task(Path("a.jsonl")), "b": tiny.text_task(shared / "b.jsonl")}
    tasks["c"] = {
        "kind": "text",
        "columns": {"text": "text"},
        "expert": {"version": 1},
        "routing_rows": {"path": "a.jsonl"},
    }
    path = tmp_path / "lib.yaml"
    path.write_text(json.dumps({"library": "lib", "base": {"folder": "base"}, "tasks": tasks}))
    return path


@pytest.fixture
def profile(tmp_path):
    return RayProfile(kind="ray", address=ADDRESS, storage=str(tmp_path / "shared"))


def test_local_files_are_taken_along_and_shared_ones_are_not(config, profile, tmp_path):
    package = pack_job(load_config(str(config)), profile)
    sent = yaml.safe_load(package.files.texts[CONFIG_FILE])
    assert package.files.paths[sent["tasks"]["a"]["source"]["path"]] == tmp_path / "a.jsonl"
    assert package.files.paths[sent["tasks"]["c"]["routing_rows"]["path"]] == tmp_path / "a.jsonl"
    assert package.files.paths[sent["base"]["folder"]] == tmp_path / "base"
    assert sent["tasks"]["b"]["source"]["path"] == str(tmp_path / "shared" / "b.jsonl")
    assert sent["storage"]["root"] == str(tmp_path / "shared")


def test_what_is_written_loads_as_a_config_with_this_code(config, profile, tmp_path):
    package, there = pack_job(load_config(str(config)), profile), tmp_path / "there"
    package.files.write(there)
    loaded = load_config(str(there / CONFIG_FILE))
    assert loaded.config.library == "lib"
    source = loaded.config.tasks["a"].source.path
    assert Path(source).read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert Path(source).is_relative_to(there)
    assert (there / "orchestrator" / "recipes" / "quickstart.yaml").is_file()
    assert (there / "workers" / "expert_job.py").is_file()
    assert len(list(there.glob("ttmoe-*.dist-info/METADATA"))) == 1  # the version that runs record
    assert not list(there.rglob("__pycache__"))


def test_the_version_is_sent_from_a_checkout_in_which_a_wheel_was_built(config, profile, tmp_path, monkeypatch):
    """A build leaves `ttmoe.egg-info` there, which comes first where the checkout is on PYTHONPATH."""
    about = tmp_path / "checkout" / "ttmoe.egg-info" / "PKG-INFO"
    about.parent.mkdir(parents=True)
    about.write_text("Metadata-Version: 2.4\nName: ttmoe\nVersion: 9.8.7\n")
    monkeypatch.syspath_prepend(tmp_path / "checkout")
    texts = pack_job(load_config(str(config)), profile).files.texts
    assert texts["ttmoe-9.8.7.dist-info/METADATA"] == about.read_text()


def test_the_id_is_that_of_config_data_and_store(config, profile, tmp_path):
    first = pack_job(load_config(str(config)), profile).id
    assert pack_job(load_config(str(config)), profile).id == first
    assert first.startswith("lib-")
    with_server = profile.model_copy(update={"tracking": "http://mlflow:5000"})
    others = {
        pack_job(load_config(str(config), ["train.steps=7"]), profile).id,
        pack_job(load_config(str(config)), with_server).id,
    }
    tiny.write_texts(tmp_path / "a.jsonl", tiny.COLOURS, "south", 30)
    others.add(pack_job(load_config(str(config)), profile).id)
    assert len(others - {first}) == 3


def test_secrets_are_in_the_environment_alone(config, profile, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t")
    monkeypatch.setenv("MINE", "my_s3cr3t")
    named = profile.model_copy(update={"env": ("MINE",), "tracking": "http://ann:pw_s3cr3t@mlflow:5000"})
    package = pack_job(load_config(str(config)), named)
    assert package.env == {"HF_TOKEN": "hf_s3cr3t", "MINE": "my_s3cr3t",
                           "MLFLOW_TRACKING_URI": "http://ann:pw_s3cr3t@mlflow:5000"}  # fmt: skip
    assert "s3cr3t" not in package.command + "".join(package.files.texts.values()) + package.id
    monkeypatch.delenv("MINE")
    with pytest.raises(InputError, match="passes on MINE, not set here"):
        pack_job(load_config(str(config)), named)


def test_a_storage_that_is_no_shared_folder_is_refused(config):
    with pytest.raises(InputError, match="relative") as caught:
        pack_job(load_config(str(config)), RayProfile(kind="ray", address=ADDRESS))
    assert caught.value.where == "storage.root"


def test_a_file_that_is_nowhere_and_files_that_are_too_large_are_refused(config, profile, tmp_path, monkeypatch):
    monkeypatch.setattr(job_files, "MAX_BYTES", 100)
    with pytest.raises(ClusterError, match="more than the 0 MiB that are sent with a job") as caught:
        pack_job(load_config(str(config)), profile)
    assert f"copy it to {tmp_path / 'shared'}" in caught.value.fix
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(InputError, match="does not exist on this machine") as caught:
        pack_job(load_config(str(config)), profile)
    assert caught.value.where == "tasks.a.source.path"


def test_a_cluster_is_found_in_the_config_the_users_file_or_by_its_address(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert find_cluster("http://other:1/").address == "http://other:1"
    with pytest.raises(InputError, match="there is no cluster 'gpu'; clusters: none"):
        find_cluster("gpu")
    clusters_file().parent.mkdir()
    clusters_file().write_text(f"clusters:\n  gpu: {{kind: ray, address: '{ADDRESS}'}}\n")
    assert find_cluster("gpu").address == ADDRESS
    assert find_cluster("gpu", {"gpu": RayProfile(kind="ray", address="http://mine:2")}).address == "http://mine:2"
    clusters_file().write_text("clusters:\n  gpu: {kind: ray, address: 'head:8265', colour: red}\n")
    with pytest.raises(InputError) as caught:
        find_cluster("gpu")
    assert "clusters.gpu.address" in str(caught.value)
    assert "write http://HOST:8265" in str(caught.value)
    assert "colour" in str(caught.value)


class Jobs:
    """A cluster's jobs."""

    place = ADDRESS

    def __init__(self, *statuses):
        self.known = [SubmittedJob(*each, "", {}, 0.0, None, 3) for each in statuses]
        self.submitted = []

    def all(self):
        return self.known

    def submit(self, job_id, *rest):
        self.submitted.append(job_id)
        self.known.append(SubmittedJob(job_id, "RUNNING", "", {}, 0.0, None, None))

    def page(self, job_id):
        return f"{ADDRESS}/#/jobs/{job_id}"

    def follow(self, job_id, is_last):
        yield "a line"


@pytest.mark.parametrize(
    ("earlier", "submitted"),
    [([], "{}"), (["RUNNING"], None), (["FAILED"], "{}-2"), (["FAILED", "STOPPED"], "{}-3"), (["SUCCEEDED"], None),
     (["STOPPED", "RUNNING"], None)],
)  # fmt: skip
def test_a_repeated_submission_finds_the_job_or_makes_another_attempt(
    config, profile, monkeypatch, capsys, earlier, submitted
):
    from rich.console import Console

    loaded = load_config(str(config))
    first = pack_job(loaded, profile).id
    jobs = Jobs(*((first if i == 0 else f"{first}-{i + 1}", status) for i, status in enumerate(earlier)))
    monkeypatch.setattr(submission, "open_cluster", lambda profile: jobs)
    made = submission.submit_config(loaded, profile, Console())
    assert jobs.submitted == ([submitted.format(first)] if submitted else [])
    last = (submitted or (first if len(earlier) == 1 else "{}-2")).format(first)
    assert (made.job_id, made.is_new, made.library) == (last, bool(submitted), "lib")
    assert made.pages == {"Ray": f"{ADDRESS}/#/jobs/{last}"}
    show_submission(made, "gpu", Console())
    assert f"ttmoe jobs cancel {last} --cluster gpu" in capsys.readouterr().out


def test_from_python_a_submission_is_a_value_and_a_failed_plan_an_error(config, profile, monkeypatch, capsys):
    data = json.loads(config.read_text()) | {"clusters": {"gpu": profile.model_dump(exclude_none=True)}}
    monkeypatch.chdir(config.parent)
    jobs = Jobs()
    monkeypatch.setattr(submission, "open_cluster", lambda profile: jobs)
    made = submit(data, "gpu", "train.steps=7")
    assert (made.job_id, made.state, made.problem) == (jobs.submitted[0], "RUNNING", None)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(submission, "require_job", lambda jobs, job_id: Jobs((job_id, "FAILED")).known[0])
    with pytest.raises(InputError, match="the plan failed") as caught:
        submit(data, "gpu", ["train.steps=7"])
    assert caught.value.code == 3


def test_a_dry_run_shows_the_job_and_no_secret(config, profile, monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t")
    named = profile.model_copy(update={"tracking": "http://ann:pw_s3cr3t@mlflow:5000"})
    hook = "https://hooks.example.com/T0/s3cr3t"
    loaded = load_config(str(config), [f"on_end={hook}"])
    assert yaml.safe_load(pack_job(loaded, named).files.texts[CONFIG_FILE])["on_end"] == hook  # what the job calls
    show_dry_run(loaded, named, Console())
    shown = capsys.readouterr().out
    assert "s3cr3t" not in shown
    assert "HF_TOKEN" in shown
    assert f"# {ADDRESS}\n# job " in shown
    assert "library: lib" in shown
    assert "on_end: https://hooks.example.com/***" in shown


def test_the_clusters_of_the_readme_are_valid():
    text = (Path(__file__).parents[3] / "README.md").read_text()
    (block,) = re.findall(r"```yaml\n(clusters:.*?)```", text, re.DOTALL)
    profiles = TypeAdapter(dict[str, ClusterProfile]).validate_python(yaml.safe_load(block)["clusters"])
    kinds = {"gpu": "ray", "hpc": "slurm", "cloud": "aws", "k8s": "kuberay"}
    assert {name: profile.kind for name, profile in profiles.items()} == kinds


SLURM = {"kind": "slurm", "storage": "/scratch/x y", "nodes": 3, "cpus_per_node": 8, "time": "1-00:00:00"}


def script(command="echo 'it''s'", **settings):
    profile = SlurmProfile.model_validate(SLURM | settings)
    return slurm_script(profile, "lib-0123456789", command)


@pytest.mark.parametrize(
    "settings", [{}, {"nodes": 1}, {"gpus_per_node": 8, "memory": "200G", "partition": "gpu", "account": "me",
                                    "options": ["--qos=high"], "setup": ["module load cuda"]}]
)  # fmt: skip
def test_the_script_of_slurm_is_one_that_bash_reads(settings):
    text = script(**settings)
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=lib-0123456789\n")
    assert ("--exclude" in text) == (settings.get("nodes") != 1)
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert ("#SBATCH --gpus-per-node=8" in directives) == ("gpus_per_node" in settings)
    assert ("#SBATCH --qos=high" in directives) == ("options" in settings)
    first = next(i for i, line in enumerate(text.splitlines()) if not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in text.splitlines()[first:])  # sbatch would ignore it


@pytest.mark.parametrize(
    ("key", "value"),
    [("time", "tomorrow"), ("storage", "here"), ("memory", "lots"), ("nodes", 0), ("partition", "a\n#SBATCH -x"),
     ("options", ["--x\nrm -r /"]), ("env", ["A B"]), ("colour", "red"), ("grace", 1)],
)  # fmt: skip
def test_a_wrong_profile_is_refused(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(ClusterProfile).validate_python(SLURM | {key: value})
    assert key in str(caught.value)
