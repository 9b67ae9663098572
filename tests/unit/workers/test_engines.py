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
from workers.stopping import stopped_by
from workers.training.settings import TrainSettings, ZeroSettings

SPEC = AdapterSpec(targets=("q", "v"), rank=4, first_layer=1)
TRAIN = TrainSettings(steps=10, batch_size=16, eval_every=5, lr=1e-2, head_lr=1e-2, weight_decay=0.1, seed=3)
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


# Of each kind one; with ``--thorough`` also those that differ from these in one setting.
OTHERS = {"stage 0", "stage 1, optimizer offloaded", "stage 2", "stage 3, base offloaded"}
# On the second architecture, the engine that differs most from one process.
TRIED = [("Llama", name) for name in ENGINES] + [("Qwen3", "stage 3, all offloaded")]
RESUMED = ("ddp", "stage 2, optimizer offloaded", "stage 3")
ONE_ROW = ("ddp", "stage 3")  # also with batches of one row, of which one process has none


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, colours):
    """For each base, the jobs of all engines."""
    folder, jobs = tmp_path_factory.mktemp("engines"), {}
    for prefix in ("Llama", "Qwen3"):
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
    for name in ("alone", *ONE_ROW):
        job = jobs["Llama", name]
        train = job.train.model_copy(update={"batch_size": 1})
        jobs["one row", name] = replace(job, train=train, folder=f"{job.folder}, one row")
    return jobs


@pytest.fixture(scope="module")
def told(jobs, tmp_path_factory, request):
    """What both processes of a group tell of each job: the start of a group takes longer than its jobs.

    Beside the jobs of all engines there are, by engine, ``interrupted`` ones, which are stopped after step 6, and
    ``resumed`` ones, which one process has begun and left after that step.
    """
    thorough = request.config.getoption("--thorough")
    folder = tmp_path_factory.mktemp("group")
    tried = {key: jobs[key] for key in TRIED if thorough or key[1] not in OTHERS}
    tried |= {("one row", name): jobs["one row", name] for name in ONE_ROW}
    half = replace(jobs["Llama", "stage 3"].base, dtype="bfloat16")
    tried["Llama", "bfloat16"] = replace(jobs["Llama", "stage 3"], base=half, folder=f"{half.folder} bfloat16")
    for name in RESUMED:
        tried["interrupted", name] = replace(jobs["Llama", name], folder=str(folder / f"interrupted {name}"))
        alone, reports = replace(jobs["Llama", "alone"], folder=str(folder / f"resumed {name}")), []
        with stopped_by(lambda reports=reports: max(process_group.trained_steps(reports), default=0) >= 6):
            assert run_experts([alone], reports.append)["colours"].error == "StoppedError"
        tried["resumed", name] = replace(alone, train=jobs["Llama", name].train)
    stops_at = [6 if kind == "interrupted" else None for kind, _ in tried]
    jobs |= {key: job for key, job in tried.items() if key[0] in ("interrupted", "resumed")}
    group = process_group.run_in_group(list(tried.values()), folder, stops_at=stops_at)
    return dict(zip(tried, zip(*group, strict=True), strict=True))


@pytest.fixture(scope="module")
def outcomes(jobs, told):
    """What process 0 tells of each job; of jobs of one process alone, result and reports."""
    found = {key: first for key, (first, _) in told.items()}
    for prefix in ("Llama", "Qwen3", "one row"):
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
    held = {name: told.held for (prefix, name), told in outcomes.items() if prefix == "Llama" and name in ENGINES}
    assert {name for name, numbers in held.items() if numbers < whole} == {n for n in held if "stage 3" in n}
    # What the backward pass used last stays, as DeepSpeed would need it first in a next one.
    assert all(numbers < whole / 8 for name, numbers in held.items() if "stage 3" in name), (held, whole)


def test_parts_of_the_base_have_its_number_format(outcomes):
    assert outcomes["Llama", "stage 3"].formats == {"torch.float32"}
    assert outcomes["Llama", "bfloat16"].formats == {"torch.bfloat16"}
    assert outcomes["Llama", "bfloat16"].outcome.metrics["test.loss"] == pytest.approx(
        outcomes["Llama", "alone"][0].metrics["test.loss"], abs=0.05
    )


def marked(tried):
    return [pytest.param(*key, marks=[pytest.mark.thorough] * (key[1] in OTHERS)) for key in tried]


@pytest.mark.parametrize(("prefix", "name"), marked([*TRIED, *(("one row", name) for name in ONE_ROW)]))
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


@pytest.fixture(scope="module")
def interrupted(jobs, told):
    """Jobs by engine that two processes have begun, and that were stopped after step 6."""
    for name in RESUMED:
        assert {each.outcome.error for each in told["interrupted", name]} == {"StoppedError"}
    return {name: jobs["interrupted", name] for name in RESUMED}


def test_files_and_checkpoints_hold_the_expert_alone(jobs, outcomes, interrupted):
    numbers = sum(tensor.numel() for tensor in weights(jobs["Llama", "stage 3"]).values())
    for name in RESUMED:
        assert Path(jobs["Llama", name].folder, EXPERT_WEIGHTS).stat().st_size < 1.1 * 4 * numbers + 8192
        for checkpoint in interrupted[name].checkpoints.folder.iterdir():
            assert checkpoint.stat().st_size < 4 * (1.1 * 4 * numbers + 8192)


def assert_resumed(jobs, job, reports):
    """The job went on after step 6, and ended like the one of one process that was not interrupted."""
    assert min(process_group.trained_steps(reports)) == 7
    found = weights(job)
    for key, value in weights(jobs["Llama", "alone"]).items():
        torch.testing.assert_close(found[key], value, atol=1e-4, rtol=0)


def test_one_process_resumes_what_two_have_begun(jobs, outcomes, interrupted):
    for job in interrupted.values():
        reports = []
        run_experts([replace(job, train=TRAIN)], reports.append)
        assert_resumed(jobs, job, reports)


def test_two_processes_resume_what_one_has_begun(jobs, outcomes):
    for name in RESUMED:
        assert_resumed(jobs, jobs["resumed", name], outcomes["resumed", name].reports)
