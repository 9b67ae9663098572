"""Jobs on Kubernetes: each is a RayJob, whose Ray cluster lives as long as its job.

The submitter pod of KubeRay prints the job's log, and stays after its end; the pods of Ray do not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from cluster.error import ClusterError
from cluster.job_files import JobFiles
from cluster.jobs import SubmittedJob, require_job
from cluster.kubectl import Kubectl
from cluster.kuberay_manifest import ANNOTATION, rayjob_manifest, rayjob_name
from cluster.kuberay_profile import KubeRayProfile

_KIND, _OURS = "rayjobs.ray.io", "app.kubernetes.io/managed-by=ttmoe"
_RAY_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_DASHBOARD = "http://127.0.0.1:8265"
_POLL_SECONDS = 2.0


class KubeRayJobs:
    """The jobs of a namespace of a Kubernetes cluster; see ``ClusterJobs``.

    Args:
        profile: The cluster.

    Raises:
        ClusterError: If this machine has no ``kubectl``.
    """

    def __init__(self, profile: KubeRayProfile) -> None:
        self._kubectl, self._profile = Kubectl(profile.context, profile.namespace), profile
        self.place = self._kubectl.place

    def submit(
        self, job_id: str, command: str, files: JobFiles, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Create the RayJob and the ConfigMap with its files."""
        manifest = rayjob_manifest(self._profile, job_id, command, files, env, metadata)
        # By the server: otherwise kubectl keeps a copy in an annotation, which has less room than the ConfigMap.
        self._kubectl.call("apply", "--server-side", "--field-manager=ttmoe", "--filename=-", text=manifest)

    def all(self) -> list[SubmittedJob]:
        """Return the jobs that were submitted, the newest first."""
        found = self._kubectl.items(_KIND, _OURS)
        found.sort(key=lambda item: str(item["metadata"]["creationTimestamp"]), reverse=True)
        return [_submitted(item) for item in found]

    def log(self, job_id: str) -> str:
        """Return what the job has printed so far; after the loss of its head, only what it printed since."""
        job, pod = require_job(self, job_id), self._submitter(job_id)
        if pod is None:
            _require_log(job)
            return ""
        return self._kubectl.call("logs", pod, seconds=0)

    def follow(self, job_id: str, is_last: Callable[[str], bool] = lambda line: False) -> Iterator[str]:
        """Yield the lines that the job prints until it ends or a line is the last one.

        KubeRay replaces a submitter that lost its connection, and the new one prints the log from its first line on.
        """
        last, seen = None, 0
        while True:
            job, pod = require_job(self, job_id), self._submitter(job_id)
            if pod != last:
                last, seen = pod, 0
            for number, line in enumerate(self._kubectl.lines("logs", "--follow", pod) if pod else ()):
                if number >= seen:
                    seen += 1
                    yield line
                    if is_last(line):
                        return
            if job.has_ended:
                if pod is None:
                    _require_log(job)
                return
            time.sleep(_POLL_SECONDS)

    def stop(self, job_id: str) -> SubmittedJob:
        """Stop a job as SIGTERM does, and return it when it has ended.

        Ray stops the driver while the cluster is there; to suspend or delete the RayJob ends driver and workers at
        once. A job that has not started is deleted.
        """
        status = self._status(job_id)
        head = self._pod(f"ray.io/cluster={status['rayClusterName']},ray.io/node-type=head") if _runs(status) else None
        if head is None:
            job = require_job(self, job_id)
            if not job.has_ended:
                self._kubectl.call(
                    "delete", f"{_KIND},configmaps", rayjob_name(job_id), "--ignore-not-found", seconds=0
                )
                job = replace(job, status="STOPPED", message="deleted before it started")
            return job
        stop = ("ray", "job", "stop", "--address", _DASHBOARD, status["jobId"])
        try:
            self._kubectl.call("exec", head, "--container=ray-head", "--", *stop, seconds=0)
        except ClusterError:
            if not require_job(self, job_id).has_ended:
                raise
        while not (job := require_job(self, job_id)).has_ended:
            time.sleep(_POLL_SECONDS)
        return job

    def page(self, job_id: str) -> str:
        """Return the command that opens the dashboard here while the job runs."""
        return " ".join([*self._kubectl.command, "port-forward", f"service/{rayjob_name(job_id)}-head-svc", "8265"])

    def _status(self, job_id: str) -> dict[str, Any]:
        found = [item for item in self._kubectl.items(_KIND, _OURS) if item["metadata"]["name"] == rayjob_name(job_id)]
        return found[0].get("status", {}) if found else {}

    def _submitter(self, job_id: str) -> str | None:
        """Return the newest submitter pod that has started, in which KubeRay prints the log."""
        return self._pod(f"job-name={rayjob_name(job_id)}")

    def _pod(self, selector: str) -> str | None:
        pods = [pod for pod in self._kubectl.items("pods", selector) if pod["status"].get("phase") != "Pending"]
        pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        return str(pods[-1]["metadata"]["name"]) if pods else None


def _runs(status: Mapping[str, Any]) -> bool:
    return status.get("jobDeploymentStatus") == "Running" and status.get("jobStatus") in ("PENDING", "RUNNING")


def _require_log(job: SubmittedJob) -> None:
    """Raise ClusterError if a job has ended: without its submitter pod, there is no log any more."""
    if job.has_ended:
        what = f"it ended as {job.status} ({job.message or 'no message'}), and the pod with its log is gone"
        raise ClusterError(what, where=f"job {job.id}", fix="see the run's report in the storage, or `ttmoe status`")


def _submitted(item: Mapping[str, Any]) -> SubmittedJob:
    """Return the job of a RayJob."""
    own, status = item["metadata"], item.get("status", {})
    metadata = {
        key.removeprefix(ANNOTATION): value
        for key, value in own.get("annotations", {}).items()
        if key.startswith(ANNOTATION)
    }
    message = str(status.get("message", ""))
    code = re.search(r"exit code (\d+)", message)
    outcome = _outcome(item)
    return SubmittedJob(
        metadata.pop("job", own["name"]),
        outcome,
        _reason(item, outcome) or message.partition(", last available logs")[0].strip(),
        {**metadata, "rayjob": own["name"]},
        _seconds(status.get("startTime")),
        _seconds(status.get("endTime")) if outcome in _RAY_ENDED else None,
        0 if outcome == "SUCCEEDED" else int(code[1]) if code and outcome == "FAILED" else None,
    )


def _outcome(item: Mapping[str, Any]) -> str:
    """Return the status of a job. KubeRay's state follows Ray's by some seconds."""
    status = item.get("status", {})
    state, of_ray = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if state in ("Failed", "ValidationFailed"):
        return "FAILED"
    if state == "Suspended" and "kueue.x-k8s.io/queue-name" not in item["metadata"].get("labels", {}):
        return "STOPPED"  # by hand; with a queue, Kueue starts it again
    if state in ("Running", "Complete") and of_ray in _RAY_ENDED:
        return str(of_ray)
    return "RUNNING" if state == "Running" and of_ray == "RUNNING" else "PENDING"


def _reason(item: Mapping[str, Any], outcome: str) -> str:
    """Return why a job has not started, as far as its RayJob says it."""
    if outcome != "PENDING":
        return ""
    if item["spec"].get("suspend"):
        return f"waits in the queue {item['metadata'].get('labels', {}).get('kueue.x-k8s.io/queue-name', '')}"
    status = item.get("status", {})
    return str(status.get("rayClusterStatus", {}).get("reason") or status.get("jobDeploymentStatus", ""))


def _seconds(time_text: str | None) -> float | None:
    return datetime.fromisoformat(time_text).timestamp() if time_text else None
