"""The manifest of a job on Kubernetes: what it holds, and that manifests with common mistakes are refused."""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kuberay_cluster import JOB, LARGE, METADATA, SMALL, job_files, profile
from pydantic import ValidationError

from cluster import kuberay_manifest
from cluster.error import ClusterError
from cluster.kuberay_manifest import check_manifest, manifest_schema, rayjob_manifest, rayjob_name

COMMAND = (
    'python -m orchestrator.cli plan config.yaml && echo "it\'s" && exec python -m orchestrator.cli run config.yaml'
)
DATA = {
    "data/ab/rows 1.jsonl": b'{"text": "caf\xc3\xa9 \xf0\x9f\x8d\x8e"}\r\n',
    "data/cd/blank.txt": b"\n  first\n\n\n",
    "data/cd/weights.bin": b"\xff\x00\x01",
    "data/cd/tabs.tsv": b"a\tb \n: c\n--- #\n",
}
ENV = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}


def manifest(folder: Path, settings: dict[str, Any] = LARGE, job: str = JOB, command: str = COMMAND) -> str:
    return rayjob_manifest(profile(settings), job, command, job_files(folder, DATA), ENV, METADATA)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The documents of a manifest in which every field of the profile is set."""
    return list(yaml.safe_load_all(manifest(tmp_path_factory.mktemp("large"))))


def test_the_files_arrive_as_they_are(tmp_path):
    config_map, rayjob = yaml.safe_load_all(manifest(tmp_path))
    held = {key: value.encode() for key, value in config_map["data"].items()}
    held |= {key: base64.b64decode(value) for key, value in config_map["binaryData"].items()}
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [each["configMap"] for each in head["volumes"] if "configMap" in each]
    assert volume["name"] == config_map["metadata"]["name"]
    found = {item["path"]: held[item["key"]] for item in volume["items"]}
    assert found.pop("job.sh").startswith(b"# Runs on the head.")
    assert found == DATA | {"config.yaml": b"library: lib\n"}


def test_it_sets_what_people_forget(large):
    _, rayjob = large
    spec, ray = rayjob["spec"], rayjob["spec"]["rayClusterSpec"]
    assert (spec["suspend"], rayjob["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]) == (True, "team")
    assert (spec["shutdownAfterJobFinishes"], spec["activeDeadlineSeconds"]) == (True, 5400)
    assert (spec["backoffLimit"], spec["submitterConfig"]["backoffLimit"]) == (0, 5)
    assert ray["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = ray["workerGroupSpecs"]
    assert workers["rayStartParams"] == {"num-cpus": "8", "num-gpus": "2"}
    assert {workers[name] for name in ("replicas", "minReplicas", "maxReplicas")} == {4}
    submitter, head, worker = (
        spec["submitterPodTemplate"]["spec"], ray["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]
    )  # fmt: skip
    (container,) = worker["containers"]
    assert container["resources"] == {"requests": {"cpu": 8, "memory": "64Gi", "nvidia.com/gpu": 2},
                                      "limits": {"memory": "64Gi", "nvidia.com/gpu": 2}}  # fmt: skip
    assert (worker["nodeSelector"], worker["tolerations"]) == ({"pool": "a100"}, LARGE["tolerations"])
    for each in (submitter, head):
        assert each["nodeSelector"] == {"pool": "cpu"}
        assert each["tolerations"][0] == {"key": "team", "operator": "Equal", "value": "nlp"}
        assert "gke-spot" in json.dumps(each["affinity"])
    assert head["terminationGracePeriodSeconds"] == 60
    for each in (head, worker):
        (container,) = each["containers"]
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        assert (env["GLOO_SOCKET_IFNAME"], env["NCCL_SOCKET_IFNAME"]) == ("ens5", "ens5")
        assert container["envFrom"] == [{"secretRef": {"name": "hub"}}]
        assert {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in each["volumes"]
        assert {"name": "storage", "mountPath": "/shared/ttmoe"} in container["volumeMounts"]
    assert {variable["name"]: variable["value"] for variable in head["containers"][0]["env"]}.items() >= {
        "TTMOE_JOB": JOB, "RAY_JOB_STOP_WAIT_TIME_S": "60", **ENV}.items()  # fmt: skip
    for each in (submitter, head, worker):
        assert (each["serviceAccountName"], each["priorityClassName"]) == ("ttmoe", "high")
        assert each["imagePullSecrets"] == [{"name": "registry"}]


def test_without_the_rest_of_a_profile_there_is_nothing_of_it(tmp_path):
    text = manifest(tmp_path, SMALL)
    for word in ("suspend", "namespace", "envFrom", "gpu:", "num-gpus", "nodeSelector:", "activeDeadline", "Account"):
        assert word not in text, word
    assert '"64Gi"}}\n' in text  # of shared memory


@pytest.mark.parametrize(
    ("job", "name"),
    [(JOB, JOB), ("Lib_2-0123456789", r"lib-2-0123456789-[0-9a-f]{8}"), ("7b-0123456789", r"job-7b-0123456789-\w{8}"),
     ("a" * 60 + "-0123456789-2", r"a{38}-[0-9a-f]{8}"), ("a" * 36 + "-0123456789", "a{36}-0123456789"),
     ("a" * 37 + "--" + "b" * 30, r"a{37}-[0-9a-f]{8}")],
)  # fmt: skip
def test_names_are_ones_that_kuberay_takes(job, name):
    assert re.fullmatch(name, rayjob_name(job))
    jsonschema.validate(rayjob_name(job), manifest_schema()["$defs"]["name"])


def test_jobs_of_long_names_have_different_ones(tmp_path):
    first, second = ("a" * 60 + f"-{number}" for number in (1, 2))
    assert rayjob_name(first) != rayjob_name(second)
    _, rayjob = yaml.safe_load_all(manifest(tmp_path, job=first))
    assert rayjob["metadata"]["annotations"]["ttmoe/job"] == first


HEAD = "spec.rayClusterSpec.headGroupSpec"
HEAD_POD = f"{HEAD}.template.spec"
WORKERS = "spec.rayClusterSpec.workerGroupSpecs.0"
WORKER_POD = f"{WORKERS}.template.spec"
REMOVED = object()
WRONG = {
    "a name too long": ("metadata.name", "a" * 48),
    "a head with cores": (f"{HEAD}.rayStartParams.num-cpus", "2"),
    "a cluster that stays": ("spec.shutdownAfterJobFinishes", REMOVED),
    "no request of memory": (f"{WORKER_POD}.containers.0.resources.requests.memory", REMOVED),
    "no limit of memory": (f"{HEAD_POD}.containers.0.resources.limits.memory", REMOVED),
    "an unknown field": (f"{WORKERS}.replica", 4),
    "a number as text": ("spec.ttlSecondsAfterFinished", "60"),
    "parameters of Ray that are numbers": (f"{WORKERS}.rayStartParams.num-cpus", 8),
    "a queue without suspend": ("spec.suspend", REMOVED),
    "suspend without a queue": ("metadata.labels.kueue.x-k8s.io/queue-name", REMOVED),
    "no shared memory": (f"{WORKER_POD}.volumes.1", REMOVED),
    "shared memory on a disk": (f"{WORKER_POD}.volumes.1.emptyDir.medium", "Default"),
    "a secret's value": (f"{HEAD_POD}.containers.0.env.0", {"name": "HF_TOKEN", "value": "hf_s3cr3t"}),
    "a password in an address": (f"{HEAD_POD}.containers.0.env.4.value", "http://ann:pw@mlflow:5000"),
    "no workers": (f"{WORKERS}.replicas", 0),
    "a head on nodes that are taken away": (f"{HEAD_POD}.affinity", REMOVED),
    "a submitter on such nodes": ("spec.submitterPodTemplate.spec.affinity", REMOVED),
    "an entrypoint of two commands": ("spec.entrypoint", "ttmoe plan && ttmoe run"),
    "a repetition of runs that fail": ("spec.backoffLimit", 3),
    "no shared storage": (f"{WORKER_POD}.volumes.0", REMOVED),
    "no interface of NCCL": (f"{WORKER_POD}.containers.0.env.1", REMOVED),
    "Ray without a token": ("spec.rayClusterSpec.authOptions", REMOVED),
    "another version of the interface": ("apiVersion", "ray.io/v1alpha1"),
}


def changed(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with another value at a dotted path; some keys have dots themselves."""
    document = copy.deepcopy(document)
    place: Any = document
    *above, last = re.findall(r"kueue\.x-k8s\.io/queue-name|[^.]+", path)
    for part in above:
        place = place[int(part) if isinstance(place, list) else part]
    key = int(last) if isinstance(place, list) else last
    if value is REMOVED:
        del place[key]
    else:
        place[key] = value
    return document


def test_the_right_manifest_is_accepted(large):
    check_manifest("\n---\n".join(json.dumps(each, ensure_ascii=False) for each in large))


@pytest.mark.parametrize("mistake", WRONG)
def test_a_manifest_with_a_common_mistake_is_refused(large, mistake):
    path, value = WRONG[mistake]
    with pytest.raises(ClusterError, match="the manifest is wrong at"):
        check_manifest(json.dumps(changed(large[1], path, value)))


def test_the_schema_allows_nothing_that_it_does_not_name():
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)

    def open_objects(part: Any, path: str = "") -> list[str]:
        if isinstance(part, list):
            return [each for i, item in enumerate(part) for each in open_objects(item, f"{path}[{i}]")]
        if not isinstance(part, dict):
            return []
        found = [path] if part.get("type") == "object" and "additionalProperties" not in part else []
        return found + [each for key, item in part.items() for each in open_objects(item, f"{path}.{key}")]

    assert set(open_objects(schema)) == {"", ".$defs.pod.properties.affinity"}  # closed where they are referred to


@pytest.mark.skipif("KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD is not set: path of ray.io_rayjobs.yaml")
@pytest.mark.parametrize("settings", [SMALL, LARGE], ids=["small", "large"])
def test_kuberays_own_schema_accepts_it(tmp_path, settings):
    """The CRD of KubeRay, ``ray-operator/config/crd/bases/ray.io_rayjobs.yaml`` of its repository."""
    crd = yaml.safe_load(Path(os.environ["KUBERAY_CRD"]).read_text())
    (schema,) = [each["schema"]["openAPIV3Schema"] for each in crd["spec"]["versions"] if each["name"] == "v1"]
    for part in every_object(schema):
        if "properties" in part and not part.get("x-kubernetes-preserve-unknown-fields"):
            part.setdefault("additionalProperties", False)
    schema["properties"]["metadata"] = {"type": "object"}
    _, rayjob = yaml.safe_load_all(manifest(tmp_path, settings))
    jsonschema.validate(rayjob, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(rayjob, f"{WORKERS}.replica", 4), schema)


def every_object(part: Any) -> list[dict[str, Any]]:
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return ([part] if isinstance(part, dict) else []) + [each for item in inner for each in every_object(item)]


def test_files_that_a_config_map_cannot_hold_are_refused(tmp_path):
    files = job_files(tmp_path, {"data/x/small": b"x", "data/x/large": bytes(kuberay_manifest.CONFIG_MAP_BYTES)})
    with pytest.raises(ClusterError, match="a ConfigMap holds 1,000,000; the largest has 1,000,000") as caught:
        rayjob_manifest(profile(), JOB, COMMAND, files, {}, METADATA)
    assert caught.value.where == str(tmp_path / "local-1")
    assert caught.value.fix == "copy it into the claim ttmoe, and write its path below /shared/ttmoe in the config"


def test_a_password_never_stands_in_a_manifest(tmp_path):
    env = {"MLFLOW_TRACKING_URI": "http://ann:pw_s3cr3t@mlflow:5000"}
    with pytest.raises(ClusterError) as caught:
        rayjob_manifest(profile(), JOB, COMMAND, job_files(tmp_path), env, METADATA)
    assert "s3cr3t" not in str(caught.value)
    assert "Secret" in caught.value.fix


@pytest.mark.parametrize(
    ("key", "value"),
    [("env", ["HF_TOKEN"]), ("storage", "shared"), ("memory", "lots"), ("memory", "0Gi"), ("cpus", 0), ("workers", 0),
     ("claim", "My Claim"), ("image", ""), ("hours", 0), ("interface", "eth0; rm"), ("gpus", -1), ("colour", "red"),
     ("tolerations", [{"key": "a", "effect": "Never"}])],
)  # fmt: skip
def test_a_wrong_profile_of_kubernetes_is_refused(key, value):
    with pytest.raises(ValidationError) as caught:
        profile(**{key: value})
    assert key in str(caught.value)


class Head:
    """The head of a job: its script runs with other folders, and with a ``python`` that acts the part."""

    def __init__(self, folder: Path, version: str, command: str) -> None:
        mount, storage, tmp = (folder / name for name in ("mount", "storage", "tmp"))
        for each in (mount / "data", storage, tmp):
            each.mkdir(parents=True)
        self.job_folder, self.tmp = storage / "jobs" / JOB, tmp
        python = folder / "python"
        python.write_text(f"#!/bin/sh\ncase $1 in -c) [ $3 = {version} ] || exit 1 ;; *) echo $2 ;; esac\n")
        python.chmod(0o755)
        settings = SMALL | {"storage": str(storage), "python": str(python)}
        config_map, rayjob = yaml.safe_load_all(manifest(folder, settings, command=command))
        (mount / "config.yaml").write_text("library: lib\n")
        (mount / "data" / "rows").write_text("rows")
        self.script, self.hook = (
            text.replace("/etc/ttmoe", str(mount)).replace("/tmp/ttmoe", str(tmp / "ttmoe"))
            for text in (config_map["data"]["job.sh"], hook_of(rayjob))
        )

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(["sh", "-c", self.script], stdout=subprocess.PIPE, text=True, start_new_session=True)


def hook_of(rayjob: dict[str, Any]) -> str:
    (container,) = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    return str(container["lifecycle"]["preStop"]["exec"]["command"][2])


def test_the_script_runs_the_command_among_its_files_and_ends_as_it_does(tmp_path):
    head = Head(tmp_path, "0.1.0", "pwd; cat config.yaml data/rows; exit 4")
    with head.start() as process:
        out, _ = process.communicate(timeout=60)
    assert out == f"cluster.wait_for_nodes\n{head.job_folder}\nlibrary: lib\nrows"
    assert process.returncode == 4


def test_an_image_of_another_version_runs_nothing(tmp_path):
    with Head(tmp_path, "0.0.9", "echo it runs").start() as process:
        out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 1)


def test_a_head_that_leaves_stops_the_driver_and_does_not_end_the_job(tmp_path):
    """Otherwise KubeRay would call the job failed, and start it on no other head."""
    driver = "trap 'echo saved; exit 143' TERM; echo starts; while true; do sleep 0.1; done"
    head = Head(tmp_path, "0.1.0", driver)
    with head.start() as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)][1] == "starts\n"
        began = time.monotonic()
        assert subprocess.run(["sh", "-c", head.hook], timeout=60, check=False).returncode in (0, 1)
        assert time.monotonic() - began < 30
        assert process.stdout.readline() == "saved\n"
        assert process.poll() is None  # until Kubernetes ends the pod
        os.killpg(process.pid, signal.SIGKILL)
