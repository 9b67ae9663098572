"""Each check of ``ttmoe doctor``: what passes, what does not, and that it says what to do."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import threading
from collections import namedtuple
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from cluster.jobs import SubmittedJob
from cluster.profiles import RayProfile
from orchestrator.config.loading import load_config
from orchestrator.config.store_address import StoreAddress
from orchestrator.doctor import cluster_job, device_check, examination, machine_checks, service_checks, software_checks
from orchestrator.doctor.check_screen import check_lines, show_checks
from orchestrator.doctor.checks import Check, checked, doubtful, faulty, merge_nodes, passed, passed_over
from orchestrator.doctor.cluster_job import pack_checks
from orchestrator.doctor.node_reports import NodeReport, ask_nodes, check_shared_storage, check_versions, report_of_node
from orchestrator.doctor.place import place_of
from orchestrator.pool.capacity import Node
from orchestrator.submit.job_package import CONFIG_FILE
from ttmoe.errors import InputError, WorkFailedError
from workers.hardware import Gpu, Hardware

Usage = namedtuple("Usage", "total used free")
GB = 10**9


@contextmanager
def answering(status=200, text="", date=True):
    """A server with one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            (self.send_response if date is True else self.send_response_only)(status)
            if isinstance(date, str):
                self.send_header("Date", date)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(text.encode())

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_error_of_any_kind_is_a_check_that_failed():
    @checked("disk")
    def broken(error):
        raise error

    assert broken(ValueError("first\nsecond")) == Check("disk", "failed", "ValueError: first")
    assert broken(InputError("no", where="storage.root", fix="do")) == Check(
        "disk", "failed", "no (storage.root)", "do"
    )
    shown = broken(OSError("no answer of http://ann:s3cret@host/"))
    assert "s3cret" not in shown.found


def test_checks_of_nodes_become_one_that_names_those_that_differ():
    good, bad = Check("disk", "ok", "9 GB"), Check("disk", "warning", "1 GB", "free some")
    assert merge_nodes({"a": [good], "b": [good]}) == [good]
    assert merge_nodes({"a": [good], "b": [bad], "c": [good]}) == [
        Check("disk", "warning", "a, c: 9 GB; b: 1 GB", "free some")
    ]


def test_python(monkeypatch):
    assert software_checks.check_python().verdict == "ok"
    monkeypatch.setattr(software_checks.platform, "python_version", lambda: "3.9.1")
    found = software_checks.check_python()
    assert (found.verdict, found.found.split("; ")[1]) == ("failed", "ttmoe requires >=3.11")


def test_packages(monkeypatch):
    assert software_checks.check_packages().verdict == "ok"
    monkeypatch.setattr(software_checks, "_requirements", lambda: map(Requirement, ["torch>=99", "ray>=2", "no-such"]))
    found = software_checks.check_packages()
    assert found.verdict == "failed"
    assert found.found.endswith("is not >=99, no-such is not installed")
    assert found.fix == "install them: python -m pip install 'torch>=99' 'no-such'"
    monkeypatch.undo()
    extras = [text for text in distribution("ttmoe").requires or [] if "extra ==" in text]
    assert extras
    assert not {Requirement(text).name for text in extras} & {each.name for each in software_checks._requirements()}


@pytest.mark.parametrize(
    ("code", "error", "gpu", "tools", "verdict", "says"),
    [
        (0, "", False, "", "ok", ""),
        (1, "x\nImportError: no libaio\n", False, "", "failed", "cannot be imported: ImportError: no libaio"),
        (0, "", True, "c++ ninja nvcc", "ok", ""),
        (0, "", True, "c++ ninja", "warning", "without nvcc (CUDA_HOME)"),
    ],
)
def test_deepspeed(code, error, gpu, tools, verdict, says, monkeypatch, tmp_path):
    done = namedtuple("Done", "returncode stderr")(code, error)
    monkeypatch.setattr(software_checks.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(software_checks, "GPU_DEVICES", (str(tmp_path),) if gpu else ())
    monkeypatch.setattr(software_checks.shutil, "which", lambda name, **_: name if name in tools.split() else None)
    found = software_checks.check_deepspeed()
    assert found.verdict == verdict
    assert says in found.found


def test_devices(monkeypatch, tmp_path):
    monkeypatch.setattr(device_check, "GPU_DEVICES", ())
    monkeypatch.setattr(device_check, "probe_hardware", lambda: Hardware((), False, {}))
    found = device_check.check_devices()
    assert found.verdict == "ok"
    assert "no GPU; the CPU computes in float32" in found.found
    monkeypatch.setattr(device_check, "GPU_DEVICES", (str(tmp_path),))
    found = device_check.check_devices()
    assert found.verdict == "failed"
    assert f"there is a GPU ({tmp_path}), which torch cannot use" in found.found
    assert "set resources.gpus_per_expert to 0" in found.fix
    gpus = (Gpu("H100", 80 * GB, True), Gpu("H100", 80 * GB, True))
    monkeypatch.setattr(device_check, "probe_hardware", lambda: Hardware(gpus, True, {}))
    monkeypatch.setattr(device_check, "_compute", lambda device, bf16: None)
    assert device_check.check_devices().found.endswith("2 x H100 (80.0 GB, bfloat16)")


def test_folders(monkeypatch, tmp_path):
    new = tmp_path / "a" / "b"
    assert machine_checks.check_storage(new).verdict == "ok"
    assert not new.parent.exists()
    for free, verdict in ((5 * GB, "warning"), (GB // 2, "failed")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(100 * GB, 0, free))
        found = machine_checks.check_cache(new)
        assert (found.name, found.verdict) == ("cache", verdict)
        assert "storage.cache" in found.fix
    monkeypatch.undo()
    (tmp_path / "file").touch()
    assert machine_checks.check_storage(tmp_path / "file" / "below").verdict == "failed"
    found = machine_checks.check_storage(Path("/proc/ttmoe"))
    assert (found.verdict, found.fix) == ("failed", "choose a writable folder as storage.root")


def test_rays_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert machine_checks.check_ray_folder().verdict == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000 * GB, 970 * GB, 30 * GB))
    assert machine_checks.check_ray_folder().verdict == "warning"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    assert machine_checks.check_ray_folder().verdict == "failed"


def test_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(machine_checks, "_SHARED_MEMORY", tmp_path)
    assert machine_checks.check_shared_memory().verdict == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 * 10**6, 0, 64 * 10**6))
    assert "--shm-size" in machine_checks.check_shared_memory().fix
    monkeypatch.setattr(machine_checks, "_SHARED_MEMORY", tmp_path / "none")
    assert machine_checks.check_shared_memory().verdict == "skipped"


@pytest.mark.parametrize(("limit", "verdict"), [(1024, "warning"), (65536, "ok"), (resource.RLIM_INFINITY, "ok")])
def test_open_files(limit, verdict, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert machine_checks.check_open_files().verdict == verdict


def test_ports(monkeypatch):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        used = holder.getsockname()[1]
        monkeypatch.setattr(machine_checks, "PORTS", {used: "MLflow's pages"})
        monkeypatch.setattr(machine_checks, "_WORKER_PORTS", range(used, used + 1))
        found = machine_checks.check_ports()
    assert found.verdict == "warning"
    assert found.found == f"not free: {used} (MLflow's pages)"
    assert "ttmoe ui --port" in found.fix
    monkeypatch.setattr(machine_checks, "_FEW_PORTS", 1)
    assert machine_checks.check_ports().found == f"{used} and 1 of Ray's for workers are free"
    monkeypatch.setattr(machine_checks, "_FEW_PORTS", 2)
    assert machine_checks.check_ports().verdict == "warning"


def test_an_mlflow_server(monkeypatch, tmp_path):
    def check(uri):
        return service_checks.check_tracking(StoreAddress(tmp_path, uri, "tracking.uri"))

    assert check("sqlite:////a/mlflow.db").verdict == "skipped"
    found = check("http://127.0.0.1:1")
    assert found.verdict == "failed"
    assert "no MLflow server responds at http://127.0.0.1:1" in found.found
    monkeypatch.setattr("orchestrator.registry.Registry.open", lambda *_: None)
    for text, verdict in ((service_checks.version("mlflow"), "ok"), ("1.30.0", "warning")):
        with answering(text=text) as address:
            found = check(address)
        assert found.verdict == verdict
        assert text in found.found
    with answering(401) as address:
        assert check(address).found == f"{address} answers"


@pytest.mark.parametrize(
    ("date", "verdict"), [(True, "ok"), ("Mon, 01 Jan 2024 00:00:00 GMT", "warning"), (False, "skipped")]
)
def test_the_clock(date, verdict):
    with answering(401, date=date) as address:
        found = service_checks.check_clock(["http://127.0.0.1:1", address])
    assert found.verdict == verdict
    assert ("seconds ahead of" in found.found) == (verdict == "warning")


def test_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert service_checks.check_hub() == Check("hub", "skipped", "off by choice (HF_HUB_OFFLINE)")
    address = StoreAddress(Path(), "http://ann:pw@host/", "tracking.uri")
    assert service_checks.clock_addresses(address) == ["http://host"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    found = service_checks.check_hub()
    assert found.verdict == "warning"
    assert "HF_HUB_OFFLINE=1" in found.fix
    with answering() as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert service_checks.check_hub().found == f"{address} answers, with a token"
    with answering(503) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert service_checks.check_hub().verdict == "warning"


def test_nodes_with_other_versions_or_another_storage(tmp_path):
    own = report_of_node([], None)
    assert check_versions({"a": own, "b": own}, own.versions).verdict == "ok"
    other = NodeReport((), {**own.versions, "ray": "1.0"})
    found = check_versions({"a": own, "b": other}, own.versions)
    assert found.verdict == "failed"
    assert found.found == f"ray: {own.versions['ray']} on a, 1.0 on b, {own.versions['ray']} on this machine"
    assert check_versions({"a": other, "b": other}, own.versions).verdict == "failed"
    (tmp_path / "driver").write_text("written by the driver")
    seen, unseen = report_of_node([], tmp_path), report_of_node([], tmp_path / "elsewhere")
    assert len(os.listdir(tmp_path)) == 2  # what the node has written
    assert check_shared_storage({"a": seen, "b": seen}, tmp_path).verdict == "ok"
    found = check_shared_storage({"a": seen, "b": unseen}, tmp_path)
    assert found.verdict == "failed"
    assert found.found == f"b: it cannot use {tmp_path} (No such file or directory)"


def test_where_no_cluster_answers_this_machine_is_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(examination, "check_deepspeed", checked("DeepSpeed")(lambda: passed_over("not installed")))
    checks = {check.name: check for check in examination.examine(place_of(None, str(tmp_path / "runs")))}
    assert {name for name, check in checks.items() if check.verdict == "failed"} == {"Ray"}
    assert "no Ray cluster answers" in checks["Ray"].found
    assert checks["training"] == Check("training", "skipped", "Ray does not start")
    assert {"Python", "packages", "open files", "hub"} <= checks.keys()
    assert list(tmp_path.iterdir()) == []


def test_two_nodes_of_one_machine_are_two_reports(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.pool.ray_workers.call_on_nodes", lambda nodes, call, _: [call() for _ in nodes])
    nodes = [Node("a", 1, 0, 0, id="1" * 20), Node("a", 1, 0, 0, id="2" * 20), Node("b", 1, 0, 0, id="3" * 20)]
    reports = ask_nodes(nodes, [], tmp_path)
    assert list(reports) == ["a (111111)", "a (222222)", "b"]
    assert check_shared_storage(reports, tmp_path).verdict == "ok"
    assert list(tmp_path.iterdir()) == []


def test_lines_fit_a_terminal_and_json_has_them_all(capsys):
    checks = [checked("one")(lambda: passed("fine"))(), checked("two")(lambda: doubtful("word " * 30, "do " * 40))()]
    for line in check_lines(checks[1], 80).plain.splitlines():
        assert len(line) <= 80
    assert show_checks(checks, Console(width=80))
    assert capsys.readouterr().out.splitlines()[-1] == "Nothing failed: 1 ok, 1 warning"
    checks += [checked("three")(lambda: faulty("no", "do"))(), checked("four")(lambda: passed_over("why"))()]
    assert not show_checks(checks, Console(width=80))
    assert "1 of 4 checks failed: 1 ok, 1 warning, 1 failed, 1 skipped" in capsys.readouterr().out
    assert not show_checks(checks, Console(width=80), as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["failed"] == 1
    assert content["checks"][0] == {"name": "one", "verdict": "ok", "found": "fine", "fix": ""}


def test_a_job_of_checks_takes_the_users_store_and_none_of_the_data(tmp_path):
    path = tmp_path / "mine.yaml"
    task = {"kind": "text", "source": {"path": "none.jsonl"}, "columns": {"text": "text"}, "label": {"column": "label"}}
    sections = {"tracking": {"uri": "http://mlflow:5000"}, "resources": {"cpus_per_expert": 2}}
    path.write_text(json.dumps({"library": "mine", "base": {"hub": "a/b"}, "tasks": {"t": task}, **sections}))
    profile = RayProfile(kind="ray", address="http://head:8265", storage=str(tmp_path / "shared"))
    package = pack_checks(load_config(str(path)), profile, ["doctor", "--json"])
    assert package.command == "exec python -m orchestrator.cli doctor --json config.yaml"
    assert (package.tracking, package.files.paths) == ("http://mlflow:5000", {})
    package.files.write(tmp_path / "there")
    there = place_of(load_config(str(tmp_path / "there" / CONFIG_FILE)))
    assert there.storage.root == str(tmp_path / "shared")
    assert there.resources.cpus_per_expert == 2
    with pytest.raises(InputError, match="the storage of the cluster is not known"):
        pack_checks(None, profile.model_copy(update={"storage": None}), ["doctor"])


class ScriptedJobs:
    """A cluster whose only job prints lines and ends with an exit code; an error may come between."""

    place = "http://head:8265"

    def __init__(self, lines, code, error=None):
        self.lines, self.code, self.error, self.stopped = lines, code, error, []

    def submit(self, job_id, *_):
        self.job = SubmittedJob(job_id, "FAILED" if self.code else "SUCCEEDED", "", {}, 0.0, 1.0, self.code)

    def all(self):
        return [self.job]

    def follow(self, _):
        yield from self.lines
        if self.error:
            raise self.error

    def stop(self, job_id):
        self.stopped.append(job_id)


def test_a_job_of_checks_is_shown_and_its_exit_code_told(monkeypatch, tmp_path, capsys):
    profile = RayProfile(kind="ray", address="http://head:8265", storage=str(tmp_path))

    def examine(jobs, **options):
        monkeypatch.setattr(cluster_job, "open_cluster", lambda _: jobs)
        return cluster_job.examine_cluster(None, profile, ["doctor"], Console(width=80), **options)

    assert examine(ScriptedJobs(["ok  disk"], 0))
    assert not examine(ScriptedJobs(["failed  disk"], 1))
    shown = capsys.readouterr().out
    assert shown.startswith("Job ttmoe-doctor-")
    assert "ok  disk" in shown
    assert "failed  disk" in shown
    printed = ["Ray says {this}", "{", ' "failed": 0,', ' "checks": []', "}", "(raylet) gone"]
    assert examine(ScriptedJobs(printed, 0), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"failed": 0, "checks": []}
    with pytest.raises(WorkFailedError, match="ended as FAILED") as caught:
        examine(ScriptedJobs(["python: not found"], 127), as_json=True)
    assert caught.value.code == 127
    assert "python: not found" in capsys.readouterr().out
    jobs = ScriptedJobs([], 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        examine(jobs)
    assert jobs.stopped == [jobs.job.id]
