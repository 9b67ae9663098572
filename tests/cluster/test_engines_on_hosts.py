"""Processes on several hosts, which are network namespaces here, train together."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import process_group
import pytest
import tiny_causal
import torch
from safetensors.torch import load_file

from ttmoe.adapter import AdapterSpec, count_parameters
from ttmoe.bank import Bank
from ttmoe.base import load_body
from ttmoe.expert_files import EXPERT_WEIGHTS
from workers.base.base_sources import resolve_base
from workers.expert_job import ExpertJob
from workers.expert_runner import run_experts
from workers.training.settings import TrainSettings, ZeroSettings

HOSTS = (("ttmoe-one", "10.77.3.1"), ("ttmoe-two", "10.77.3.2"))


@pytest.fixture(scope="module")
def hosts():
    """Two network namespaces with one link between them."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and the command ip")
    command = lambda text: subprocess.run(["ip", *text.split()], check=True, capture_output=True)  # noqa: E731
    made = []
    try:
        for name, _ in HOSTS:
            command(f"netns add {name}")
            made.append(name)
        command(f"-n {HOSTS[0][0]} link add one type veth peer name two netns {HOSTS[1][0]}")
        for (name, address), link in zip(HOSTS, ("one", "two"), strict=True):
            command(f"-n {name} addr add {address}/24 dev {link}")
            for each in (link, "lo"):
                command(f"-n {name} link set {each} up")
        yield HOSTS
    finally:
        for name in made:
            command(f"netns del {name}")


def test_processes_on_two_hosts_train_as_one_does(hosts, colours, tmp_path):
    folder = tiny_causal.save_causal_base(tmp_path / "base")
    base = resolve_base(folder=str(folder), cache=tmp_path / "cache", dtype="float32", max_length=16)
    spec = AdapterSpec(targets=("q", "v"), rank=4, first_layer=1)
    parameters = count_parameters(Bank(load_body(base), base.pooling).build_expert(spec, 3).adapter.groups)
    train = TrainSettings(steps=10, batch_size=16, eval_every=5, lr=1e-2, seed=3)
    alone = ExpertJob("colours", base, colours, spec, "trained", train, "ab" * 32, parameters, str(tmp_path / "alone"))
    zero = train.model_copy(update={"engine": "deepspeed", "deepspeed": ZeroSettings(param_persistence_threshold=0)})
    jobs = [replace(alone, train=train.model_copy(update={"engine": "ddp"}), folder=str(tmp_path / "ddp")),
            replace(alone, train=zero, folder=str(tmp_path / "zero"))]  # fmt: skip
    run_experts([alone], lambda report: None)
    first, second = process_group.run_in_group(jobs, tmp_path, hosts)
    assert [told.base_loads for told in second] == [1, 2]
    expected = load_file(Path(alone.folder, EXPERT_WEIGHTS))
    for job, told in zip(jobs, first, strict=True):
        found = load_file(Path(job.folder, EXPERT_WEIGHTS))
        assert told.outcome.metrics["steps"] == 10
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-4, rtol=0)
