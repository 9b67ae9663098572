"""A profile and a job for tests of KubeRay, and a ``kubectl`` that answers from a script."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.job_files import JobFiles
from cluster.kuberay_profile import KubeRayProfile

JOB = "lib-0123456789"
METADATA = {"library": "lib", "config": "lib.yaml"}
SMALL = {"kind": "kuberay", "storage": "/shared/ttmoe", "claim": "ttmoe", "image": "registry/ttmoe:0.1.0",
         "cpus": 8, "memory": "64Gi"}  # fmt: skip
LARGE = SMALL | {
    "context": "prod", "namespace": "ml", "workers": 4, "gpus": 2, "queue": "team", "hours": 1.5, "secret": "hub",
    "node_selector": {"pool": "a100"}, "head_node_selector": {"pool": "cpu"}, "service_account": "ttmoe",
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "head_tolerations": [{"key": "team", "value": "nlp"}], "image_pull_secrets": ["registry"],
    "priority_class": "high", "shared_memory": "16Gi", "interface": "ens5", "grace": 60, "retries": 5,
}  # fmt: skip

_KUBECTL = """
import json, re, sys
from pathlib import Path

folder, arguments = Path(__file__).parent, " ".join(sys.argv[1:])
calls = folder / "calls.jsonl"
before = [json.loads(line)["arguments"] for line in calls.read_text().splitlines()] if calls.exists() else []
with calls.open("a") as file:
    file.write(json.dumps({"arguments": arguments, "input": "" if "logs" in arguments else sys.stdin.read()}) + "\\n")
for pattern, answers in json.loads((folder / "answers.json").read_text()).items():
    if re.search(pattern, arguments):
        earlier = sum(bool(re.search(pattern, each)) for each in before)
        out, err, code = answers[min(earlier, len(answers) - 1)]
        sys.stdout.write(out), sys.stderr.write(err)
        sys.exit(code)
sys.exit(f"no answer for {arguments}")
"""


def profile(settings: dict[str, Any] | None = None, **more: Any) -> KubeRayProfile:
    return KubeRayProfile.model_validate((settings or SMALL) | more)


def job_files(folder: Path, data: dict[str, bytes] | None = None) -> JobFiles:
    """A config, and local files by their path in the working directory."""
    paths = {}
    for number, (name, content) in enumerate((data or {}).items()):
        paths[name] = folder / f"local-{number}"
        paths[name].write_bytes(content)
    return JobFiles(paths, {"config.yaml": "library: lib\n"})


def rayjob(state: str = "", of_ray: str = "", job: str = JOB, **more: Any) -> dict[str, Any]:
    """A RayJob as ``kubectl get`` shows it; ``more`` is for its status."""
    status = {"jobDeploymentStatus": state, "jobStatus": of_ray, **more}
    annotations = {"ttmoe/job": job, **{f"ttmoe/{key}": value for key, value in METADATA.items()}}
    own = {"name": job, "creationTimestamp": "2026-11-26T08:00:00Z", "annotations": annotations, "labels": {}}
    return {"metadata": own, "spec": {}, "status": {key: value for key, value in status.items() if value}}


def pod(name: str, phase: str = "Running", created: str = "08:01:00") -> dict[str, Any]:
    return {"metadata": {"name": name, "creationTimestamp": f"2026-11-26T{created}Z"}, "status": {"phase": phase}}


def listed(*items: dict[str, Any]) -> str:
    return json.dumps({"items": items})


class FakeKubectl:
    """A ``kubectl`` on the path that answers by patterns of its arguments, and remembers its calls."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        script = folder / "kubectl"
        script.write_text(f"#!{sys.executable} -IS\n{_KUBECTL}")
        script.chmod(0o755)
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        self._answers: dict[str, list[tuple[str, str, int]]] = {}

    def answers(self, pattern: str, *outputs: str | tuple[str, int]) -> None:
        """Answer calls that match with these outputs one by one, the last one again and again.

        A pair is an error message and an exit code.
        """
        found = [(each, "", 0) if isinstance(each, str) else ("", *each) for each in outputs]
        self._answers = {pattern: found} | {key: each for key, each in self._answers.items() if key != pattern}
        (self.folder / "answers.json").write_text(json.dumps(self._answers))

    def calls(self, pattern: str = "") -> list[dict[str, str]]:
        path = self.folder / "calls.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in found if pattern in call["arguments"]]
