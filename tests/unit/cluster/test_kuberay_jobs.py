"""Jobs on Kubernetes, by a ``kubectl`` that answers as KubeRay 1.7 and Kubernetes would: no cluster was there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import tiny
import yaml
from kuberay_cluster import JOB, LARGE, SMALL, FakeKubectl, listed, pod, profile, rayjob
from rich.console import Console

from cluster import kuberay_jobs
from cluster.error import ClusterError
from cluster.jobs import require_job
from cluster.kinds import open_cluster
from orchestrator.config.loading import LoadedConfig, load_config
from orchestrator.submit.job_screen import print_log, show_job, show_jobs, stop_job
from orchestrator.submit.submission import submit_config
from orchestrator.submit.submission_screen import show_dry_run, show_submission
from ttmoe.errors import WorkFailedError

JOBS, SUBMITTERS, HEADS = "get rayjobs", "get pods .*job-name=", "get pods .*node-type=head"
RUNNING = {"jobId": "lib-0123456789-abcde", "rayClusterName": "lib-0123456789-fghij"}
FITS = "The plan fits the cluster; the run starts."


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    monkeypatch.setattr(kuberay_jobs, "_POLL_SECONDS", 0)
    return FakeKubectl(tmp_path / "bin", monkeypatch)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedConfig:
    """A config with data of its own, in which something looks like an emoji."""
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tiny.write_texts(tmp_path / "a.jsonl", tiny.COLOURS, "north", 30)
    task = tiny.text_task(Path("a.jsonl")) | {"label": {"column": "label", "names": {"red": ":apple:"}}}
    path = tmp_path / "lib.yaml"
    path.write_text(json.dumps({"library": "lib", "base": {"folder": "/shared/ttmoe/base"}, "tasks": {"a": task}}))
    return load_config(str(path))


def console() -> tuple[Console, io.StringIO]:
    from orchestrator.cli.options import console

    made, out = console(), io.StringIO()
    made.file = out
    return made, out


def test_a_dry_run_prints_what_is_applied(kubectl, loaded):
    screen, shown = console()
    show_dry_run(loaded, profile(LARGE), screen)
    assert kubectl.calls() == []
    kubectl.answers("apply", "")
    kubectl.answers(JOBS, listed(), listed(rayjob("Running", "RUNNING", id_of(shown.getvalue()))))
    kubectl.answers(SUBMITTERS, listed(pod("submitter")))
    kubectl.answers("logs", f"the plan\n{FITS}\nmore\n")
    screen, printed = console()
    submission = submit_config(loaded, profile(LARGE), screen)
    show_submission(submission, "k8s", screen)
    (applied,) = kubectl.calls("apply")
    assert shown.getvalue().startswith(applied["input"])
    assert not [line for line in shown.getvalue()[len(applied["input"]) :].splitlines() if line[:1] not in ("", "#")]
    assert "--context prod --namespace ml" in applied["arguments"]
    assert "s3cr3t" not in shown.getvalue() + json.dumps(kubectl.calls())
    config = yaml.safe_load(next(yaml.safe_load_all(applied["input"]))["data"]["config.yaml"])
    assert config["tasks"]["a"]["label"]["names"] == {"red": ":apple:"}
    assert config["storage"]["root"] == "/shared/ttmoe"
    assert f"the plan\n{FITS}\n" in printed.getvalue()
    assert "more" not in printed.getvalue()
    assert "port-forward service/" in printed.getvalue()


def id_of(manifest: str) -> str:
    _, document = yaml.safe_load_all(manifest)
    return str(document["metadata"]["annotations"]["ttmoe/job"])


def test_another_image_is_another_job_and_brings_the_code(loaded):
    first, again, other = (
        (console(), profile(image=image)) for image in ("registry/ttmoe:1", "registry/ttmoe:1", "registry/ttmoe:2")
    )
    ids = []
    for (screen, shown), each in (first, again, other):
        show_dry_run(loaded, each, screen)
        ids.append(id_of(shown.getvalue()))
        assert "orchestrator/" not in shown.getvalue()
    assert ids[0] == ids[1] != ids[2]


def test_a_plan_that_fails_says_what_to_do(kubectl, loaded):
    screen, shown = console()
    show_dry_run(loaded, profile(), screen)
    message = "Job entrypoint command failed with exit code 127, last available logs:\nno python"
    failed = rayjob("Failed", "FAILED", id_of(shown.getvalue()), message=message)
    kubectl.answers("apply", "")
    kubectl.answers(JOBS, listed(), listed(failed))
    kubectl.answers(SUBMITTERS, listed(pod("submitter", "Succeeded")))
    kubectl.answers("logs", "sh: python: not found\n")
    problem = submit_config(loaded, profile(), console()[0]).problem
    assert "the plan failed" in str(problem)
    assert problem.code == 127
    assert "give `python` of the cluster" in problem.fix


@pytest.mark.parametrize(
    ("state", "of_ray", "more", "status", "code", "message"),
    [
        ("", "", {}, "PENDING", None, ""),
        ("Initializing", "", {"rayClusterStatus": {"reason": "0/3 nodes"}}, "PENDING", None, "0/3 nodes"),
        ("Running", "", {}, "PENDING", None, "Running"),
        ("Running", "RUNNING", {}, "RUNNING", None, ""),
        ("Running", "SUCCEEDED", {}, "SUCCEEDED", 0, ""),
        ("Complete", "SUCCEEDED", {}, "SUCCEEDED", 0, ""),
        ("Complete", "STOPPED", {"message": "Job was stopped"}, "STOPPED", None, "Job was stopped"),
        ("Failed", "FAILED", {"message": "failed with exit code 4, last available logs (x):\ny"}, "FAILED", 4,
         "failed with exit code 4"),
        ("Failed", "RUNNING", {"message": "passed the activeDeadlineSeconds"}, "FAILED", None,
         "passed the activeDeadlineSeconds"),
        ("ValidationFailed", "", {"message": "name too long"}, "FAILED", None, "name too long"),
        ("Suspended", "", {}, "STOPPED", None, ""),
    ],
)  # fmt: skip
def test_the_states_of_kuberay_are_those_of_a_job(kubectl, state, of_ray, more, status, code, message):
    times = {"startTime": "2026-11-26T08:00:10Z", "endTime": "2026-11-26T08:10:10Z"} if state else {}
    kubectl.answers(JOBS, listed(rayjob(state, of_ray, **times, **more)))
    (job,) = open_cluster(profile()).all()
    assert (job.id, job.status, job.exit_code, job.message) == (JOB, status, code, message)
    assert job.metadata["library"] == "lib"
    if state:
        assert (job.ended or job.started) - job.started == (600 if job.has_ended else 0)


def test_a_job_in_a_queue_waits(kubectl):
    waiting = rayjob("Suspended")
    waiting["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team"
    kubectl.answers(JOBS, listed(waiting | {"spec": {"suspend": True}}))
    job = require_job(open_cluster(profile()), JOB)
    assert (job.status, job.message) == ("PENDING", "waits in the queue team")


def test_jobs_are_listed_and_shown(kubectl):
    older = rayjob("Complete", "SUCCEEDED", "lib-0", startTime="2026-11-26T07:00:00Z", endTime="2026-11-26T07:30:00Z")
    older["metadata"]["creationTimestamp"] = "2026-11-25T08:00:00Z"
    kubectl.answers(JOBS, listed(older, rayjob("Running", "RUNNING", startTime="2026-11-26T08:00:10Z")))
    jobs = open_cluster(profile(LARGE))
    assert [job.id for job in jobs.all()] == [JOB, "lib-0"]
    screen, out = console()
    show_jobs(jobs, screen)
    # The first one still runs: its time may take two lines, according to the time of day.
    assert [word for word in out.getvalue().split() if word in (JOB, "lib-0")] == [JOB, "lib-0"]
    screen, out = console()
    show_job(jobs, "lib-0", screen)
    assert "status   succeeded" in out.getvalue()
    assert "kubectl --context prod --namespace ml port-forward service/lib-0-head-svc 8265" in out.getvalue()
    with pytest.raises(ClusterError, match="no job 'other'"):
        show_job(jobs, "other", screen)


def test_a_log_is_followed_over_lost_connections_and_submitters(kubectl):
    """A broken connection to one pod repeats no line; another submitter begins anew."""
    running = listed(rayjob("Running", "RUNNING"))
    kubectl.answers(JOBS, running, running, running, listed(rayjob("Complete", "SUCCEEDED")))
    first, second = pod("submitter-a"), pod("submitter-b", created="08:05:00")
    kubectl.answers(SUBMITTERS, listed(first, pod("new", "Pending", "09:00:00")), listed(first), listed(second, first))
    kubectl.answers("logs.*submitter-a", "one\n", "one\ntwo\n")
    kubectl.answers("logs.*submitter-b", "three\n", "three\nfour\n")
    assert list(open_cluster(profile()).follow(JOB)) == ["one", "two", "three", "four"]
    screen, out = console()
    print_log(open_cluster(profile()), JOB, screen)
    assert out.getvalue() == "three\nfour\n"


def test_a_log_without_its_pod_is_said_to_be_gone(kubectl):
    kubectl.answers(SUBMITTERS, listed())
    kubectl.answers(JOBS, listed(rayjob("Initializing")))
    jobs = open_cluster(profile())
    assert jobs.log(JOB) == ""
    kubectl.answers(JOBS, listed(rayjob("Failed", "FAILED", message="lost")))
    for read in (jobs.log, lambda job: list(jobs.follow(job))):
        with pytest.raises(ClusterError, match=r"ended as FAILED \(lost\), and the pod with its log is gone"):
            read(JOB)


def test_a_log_that_may_not_be_read_is_no_silence(kubectl):
    kubectl.answers(JOBS, listed(rayjob("Running", "RUNNING")))
    kubectl.answers(SUBMITTERS, listed(pod("submitter")))
    kubectl.answers("logs", ('Error from server (Forbidden): pods "submitter" is forbidden: may not get pods/log', 1))
    with pytest.raises(ClusterError, match="kubectl logs failed") as caught:
        list(open_cluster(profile()).follow(JOB))
    assert "pods/log" in caught.value.fix


def test_a_running_job_is_stopped_by_ray_and_keeps_its_log(kubectl):
    running, stopped = listed(rayjob("Running", "RUNNING", **RUNNING)), listed(rayjob("Complete", "STOPPED"))
    kubectl.answers(JOBS, running, running, running, stopped)
    kubectl.answers(HEADS, listed(pod("head")))
    kubectl.answers("exec", "")
    screen, out = console()
    stop_job(open_cluster(profile()), JOB, screen)
    assert out.getvalue() == f"job {JOB}: stopped\n"
    (call,) = kubectl.calls("exec")
    assert call["arguments"].endswith(
        "exec head --container=ray-head -- ray job stop --address http://127.0.0.1:8265 lib-0123456789-abcde"
    )
    assert not kubectl.calls("delete")


def test_a_job_that_waits_is_deleted_with_its_files(kubectl):
    kubectl.answers(JOBS, listed(rayjob("Initializing")))
    kubectl.answers("delete", "")
    assert open_cluster(profile()).stop(JOB).status == "STOPPED"
    (call,) = kubectl.calls("delete")
    assert f"delete rayjobs.ray.io,configmaps {JOB} " in call["arguments"]


@pytest.mark.parametrize(("state", "raises"), [(("Running", "RUNNING"), True), (("Complete", "SUCCEEDED"), False)])
def test_a_stop_that_is_refused_counts_unless_the_job_has_ended(kubectl, state, raises):
    kubectl.answers(JOBS, listed(rayjob("Running", "RUNNING", **RUNNING)), listed(rayjob(*state)))
    kubectl.answers(HEADS, listed(pod("head")))
    kubectl.answers("exec", ('Error from server (Forbidden): pods "head" is forbidden', 1))
    if raises:
        with pytest.raises(ClusterError, match="kubectl exec failed"):
            open_cluster(profile()).stop(JOB)
    else:
        assert open_cluster(profile()).stop(JOB).status == "SUCCEEDED"


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ("Error in configuration: context was not found for specified context: prod", "kubectl config get-contexts"),
        ('error: the server doesn\'t have a resource type "rayjobs"', "KubeRay is not installed"),
        ('error: resource mapping not found for name: "a": no matches for kind "RayJob" in version "ray.io/v1"',
         "KubeRay is not installed"),
        ('Error from server (Forbidden): rayjobs.ray.io is forbidden: User "me" cannot list', "create pods/exec"),
        ("failed to create typed patch object: .spec.rayClusterSpec.authOptions: field not declared in schema",
         "1.5.1 or newer"),
        ('Error from server (NotFound): namespaces "ml" not found', "correct `namespace`"),
        ("error: You must be logged in to the server (Unauthorized)", "log in"),
        ("The connection to the server localhost:8080 was refused", "kubectl cluster-info"),
    ],
)  # fmt: skip
def test_what_kubectl_refuses_comes_with_what_to_do(kubectl, message, fix):
    kubectl.answers(".", (message, 1))
    with pytest.raises(ClusterError) as caught:
        open_cluster(profile(LARGE)).all()
    assert message in caught.value.what
    assert fix in caught.value.fix
    assert "prod" in caught.value.where


def test_a_machine_without_kubectl_is_told_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match="this machine has no kubectl"):
        open_cluster(profile(SMALL))


def test_a_job_that_failed_ends_the_command_with_its_exit_code(kubectl):
    kubectl.answers(JOBS, listed(rayjob("Failed", "FAILED", message="command failed with exit code 4, last")))
    with pytest.raises(WorkFailedError) as caught:
        show_job(open_cluster(profile()), JOB, console()[0])
    assert caught.value.code == 4
