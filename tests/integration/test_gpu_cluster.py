"""A cluster whose head has no GPU and whose other node has two: experts are trained there."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from commands import SCRIPT, here, succeeded
from quickstart import ROOT
from ray_cluster import running_cluster
from test_run import CONFIG, write_library

import orchestrator.plan.nodes
from cluster.local import ray_session
from orchestrator.config.loading import load_config
from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.plan.planning import make_plan
from orchestrator.pool.work_units import WorkUnit
from orchestrator.pool.worker_pool import WorkerPool
from orchestrator.run import node_checks
from orchestrator.run.node_checks import check_nodes
from ttmoe.errors import InputError

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cluster():
    """Its address, and the mark of the processes of the node with GPUs.

    It asks for this user's token, as clusters that tests started in this process do: Ray's core keeps the first mode.
    """
    subprocess.run([SCRIPT.parent / "ray", "get-auth-token", "--generate"], capture_output=True, check=True)
    nodes = ["--num-cpus=1", "--num-gpus=0"], ["--num-cpus=4", "--num-gpus=2", '--labels={"zone": "a"}']
    with (
        running_cluster(*map(list, nodes), RAY_AUTH_MODE="token", PYTHONPATH=str(ROOT)) as (address, marks),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_ADDRESS", address)
        with ray_session():  # one connection: test_running_cluster.py and test_submit.py make their own
            yield address, marks[1]


@pytest.fixture
def library(cluster, base_folder, tmp_path, monkeypatch):
    """A folder with a config. The probe finds two GPUs on the second node, and other number formats than here."""
    address, mark = cluster

    def probe():  # nested, so that it is pickled by value
        import os

        from workers.hardware import Gpu, Hardware, package_version

        here = os.environ.get("TTMOE_TEST") == mark
        gpus = (Gpu("H100", 80 * 10**9, True), Gpu("H100", 80 * 10**9, True)) if here else ()
        return Hardware(gpus, False, {"ttmoe": package_version("ttmoe")})

    monkeypatch.setattr(orchestrator.plan.nodes, "probe_hardware", probe)
    write_library(tmp_path, base_folder, CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", address)
    return tmp_path


def test_the_plan_shows_the_gpus_and_uses_them(library, monkeypatch):
    monkeypatch.setattr("commands.ELSEWHERE", ())
    out = succeeded(here(library, "plan", "tiny.yaml")).out
    assert "bfloat16" in out.splitlines()[0]
    assert "2 GPUs (H100, 80.0 GB, bfloat16)" in out
    assert "1 GPUs" in next(line for line in out.splitlines() if line.startswith("each job"))
    found = json.loads(succeeded(here(library, "plan", "tiny.yaml", "--json")).out)
    assert sorted(node["gpus"] for node in found["nodes"]) == [0, 2]
    assert (found["resources"]["gpus"], found["resources"]["at_once"]) == (1, 2)


@pytest.mark.parametrize("settings", [pytest.param([], marks=pytest.mark.thorough), ["resources.node_labels.zone=a"]])
def test_the_experts_are_trained_there_on_a_gpu_each(library, cluster, settings):
    def work(job, folder, report):
        import os
        import time
        from pathlib import Path

        import ray

        Path(folder, job.task).touch()
        end = time.monotonic() + 60
        while len(os.listdir(folder)) < 2:
            assert time.monotonic() < end, "alone for a minute"
            time.sleep(0.05)
        return job.device, job.base.dtype, os.environ["TTMOE_TEST"], ray.get_runtime_context().get_accelerator_ids()

    meeting = library / "meeting"
    meeting.mkdir()
    plan = make_plan(load_config("tiny.yaml", settings).config)
    units = [
        WorkUnit.of(task, work, (expert.job, str(meeting)), Path(expert.job.folder))
        for task, expert in plan.experts.items()
    ]
    with WorkerPool(plan.resources, FailureSettings()) as pool:
        results = [event.result for event in pool.run(units) if event and event.done]
    assert [result[:3] for result in results] == [("cuda", "bfloat16", cluster[1])] * 2
    assert sorted(result[3]["GPU"] for result in results) == [["0"], ["1"]]


def test_a_run_that_a_node_cannot_serve_ends_before_any_work(library, monkeypatch):
    (library / "runs").mkdir(exist_ok=True)
    shared = [f"storage.root={library / 'runs'}"]
    plan = make_plan(load_config("tiny.yaml", shared).config)
    with pytest.raises(InputError, match="relative path") as caught:
        check_nodes(replace(plan, config=load_config("tiny.yaml", []).config))
    assert caught.value.where == "storage.root"
    moved = replace(plan, base=replace(plan.base, folder="/driver/base"))
    with pytest.raises(InputError, match=r"node 127\.0\.0\.3: there is no folder /driver/base on this node"):
        check_nodes(moved)
    check = node_checks.check_node
    monkeypatch.setattr(node_checks, "check_node", lambda base, cache, mark: check(base, cache, mark / "below"))
    with pytest.raises(InputError, match=r"node 127\.0\.0\.3: it does not see"):
        check_nodes(plan)
    assert not list((library / "runs").glob(".seen-*"))
