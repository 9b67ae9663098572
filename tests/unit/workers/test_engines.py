"""Engines: two processes train the same expert as one, whatever they divide between them."""

from __future__ import annotations

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
from workers.expert_result import ExpertResult
from workers.expert_runner import run_experts
from workers.training.settings import TrainSettings, ZeroSettings

SPEC = AdapterSpec(targets=("q", "v"), rank=4, first_layer=1)
TRAIN = TrainSettings(steps=10, batch_size=16, eval_every=5, lr=1e-2, head_lr=1e-2, weight_decay=0.1, seed=3)
PREFIXES = ("Llama", "Qwen3")
STAGES = {
    "stage 0": {"stage": 0},
    "stage 1": {"stage": 1},
    "stage 2": {"stage": 2},
    "stage 3": {"stage": 3},
    "stage 1, optimizer offloaded": {"stage": 1, "offload_optimizer": "cpu"},
    "stage 2, optimizer offloaded": {"stage": 2, "offload_optimizer": "cpu"},
    "stage 3, base offloaded": {"stage": 3, "offload_param": "cpu"},
    "stage 3, all offloaded": {"stage": 3, "offload_param": "cpu", "offload_optimizer": "cpu"},
}
ENGINES = {"ddp": {"engine": "ddp"}} | {
    name: {"engine": "deepspeed", "deepspeed": ZeroSettings(param_persistence_threshold=0, **settings)}
    for name, settings in STAGES.items()
}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, colours):
    """For each base, the jobs of all engines."""
    folder, jobs = tmp_path_factory.mktemp("engines"), {}
    for prefix in PREFIXES:
        base = resolve_base(folder=str(tiny_causal.save_causal_base(folder / prefix, prefix)), cache=folder / "cache",
                            dtype="float32", max_length=16)  # fmt: skip
        bank = Bank(load_body(base), base.pooling)
        parameters = count_parameters(bank.build_expert(SPEC, 3).adapter.groups)
        alone = ExpertJob("colours", base, colours, SPEC, "trained", TRAIN, "ab" * 32, parameters,
                          str(folder / f"{prefix} alone"), trunk_bytes=10**8)  # fmt: skip
        jobs[prefix, "alone"] = alone
        for name, settings in ENGINES.items():
            train = TRAIN.model_copy(update=settings)
            jobs[prefix, name] = replace(alone, train=train, folder=str(folder / f"{prefix} {name}"))
    return jobs


@pytest.fixture(scope="module")
def outcomes(jobs, tmp_path_factory):
    """What `process_group` tells of each job in process 0; of jobs of one process alone, result and reports."""
    shared = {key: job for key, job in jobs.items() if key[1] != "alone"}
    first, _ = process_group.run_in_group(2, list(shared.values()), tmp_path_factory.mktemp("group"))
    found = dict(zip(shared, first, strict=True))
    for prefix in PREFIXES:
        reports = []
        found[prefix, "alone"] = run_experts([jobs[prefix, "alone"]], reports.append)["colours"], reports
    return found


def losses(outcome):
    reports = outcome[1]
    return [report.metrics["train.loss"] for report in reports if "train.loss" in report.metrics]


def weights(job):
    return load_file(Path(job.folder, EXPERT_WEIGHTS))


def test_only_stage_3_divides_the_base(jobs, outcomes):
    whole = sum(parameter.numel() for parameter in load_body(jobs["Llama", "alone"].base).parameters())
    held = {name: outcomes["Llama", name][3] for name in ENGINES}
    assert {name for name, numbers in held.items() if numbers < whole} == {n for n in ENGINES if "stage 3" in n}
    # What the backward pass used last stays, as DeepSpeed would need it first in a next one.
    assert all(numbers < whole / 8 for name, numbers in held.items() if "stage 3" in name), (held, whole)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_two_processes_train_as_one_does(jobs, outcomes, prefix, name):
    alone, shared = outcomes[prefix, "alone"], outcomes[prefix, name]
    assert isinstance(shared[0], ExpertResult), shared[0]
    assert len(losses(alone)) == len(losses(shared)) == 10
    assert losses(shared) == pytest.approx(losses(alone), abs=5e-5)
    expected, found = weights(jobs[prefix, "alone"]), weights(jobs[prefix, name])
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-4, rtol=0)
    for key in ("test.accuracy", "test.loss", "best_step", "tokens.real_share"):
        assert shared[0].metrics[key] == pytest.approx(alone[0].metrics[key], abs=2e-3), key
