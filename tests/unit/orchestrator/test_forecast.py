"""Forecasts of memory, parallel jobs, disk space and time, and errors for work that does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
from library_plan import FakeRegistry, plan_of, version_of

from orchestrator.plan import forecast as module
from orchestrator.plan import router_forecast
from orchestrator.plan.forecast import check_feasible, check_router_fits, make_forecast
from orchestrator.plan.library_state import ExpertState, StageState, read_library_state
from orchestrator.plan.memory_fit import GPU_SHARE
from orchestrator.plan.router_forecast import forecast_router
from orchestrator.plan.trunk_forecast import count_tokens
from orchestrator.pool.capacity import GB, Node
from ttmoe.base import empty_body
from ttmoe.errors import InfeasibleError
from workers.cache.feature_store import compute_features
from workers.data.prepared import load_split
from workers.training.batches import tokenize
from workers.training.memory import estimate_pass_memory

CPU = Node("cpu", 4, 0, 64 * GB)
GPU = Node("gpu", 16, 2, 64 * GB, 80 * GB)


@pytest.fixture
def planned(base_folder, tmp_path):
    return lambda **sections: plan_of(base_folder, tmp_path, **sections)


@pytest.fixture
def on_gpu(planned):
    """Make a plan with jobs on a GPU, as on a machine that has one."""

    def make(**resources):
        train = {"batch_size": 20000}  # so that training needs more memory than evaluation
        plan = planned(resources={"gpus_per_expert": 1, **resources}, train=train)
        experts = {k: replace(e, job=replace(e.job, device="cuda")) for k, e in plan.experts.items()}
        return replace(plan, experts=experts)

    return make


def forecast_of(plan, nodes, versions=()):
    return make_forecast(plan, read_library_state(plan, FakeRegistry(list(versions))), nodes)


def test_the_limiting_resource_decides_the_number_of_parallel_jobs(planned):
    forecast = forecast_of(planned(), [CPU])
    assert (forecast.jobs, forecast.experts_per_job) == (2, 1)
    assert (forecast.parallel_jobs, forecast.limiting_resource) == (4, "CPU")
    assert forecast.base_loads == 2  # not more processes than jobs
    assert forecast.job_resources.memory == max(memory.host for memory in forecast.memory.values())
    two = forecast_of(planned(resources={"cpus_per_expert": 2}), [CPU, CPU])
    assert (two.parallel_jobs, two.limiting_resource) == (4, "CPU")
    tight = forecast_of(planned(), [replace(CPU, memory=int(forecast.job_resources.memory * 1.5))])
    assert (tight.parallel_jobs, tight.limiting_resource) == (1, "memory")
    limited = forecast_of(planned(resources={"max_parallel": 1}), [CPU])
    assert (limited.parallel_jobs, limited.limiting_resource, limited.base_loads) == (1, "max_parallel", 1)


def test_experts_per_job_is_the_setting(planned):
    forecast = forecast_of(planned(resources={"experts_per_job": 2}), [CPU])
    assert (forecast.jobs, forecast.experts_per_job) == (1, 2)
    assert forecast.job_resources.memory > forecast_of(planned(), [CPU]).job_resources.memory


def test_auto_packs_as_many_experts_as_fit_the_gpu_memory(on_gpu):
    assert forecast_of(on_gpu(), [GPU]).experts_per_job == 1  # two experts and two GPUs: one expert for each GPU
    assert forecast_of(on_gpu(), [replace(GPU, gpus=1)]).experts_per_job == 2  # all experts
    one = max(memory.gpu for memory in forecast_of(on_gpu(), [GPU]).memory.values())
    full = replace(GPU, gpus=1, gpu_memory=int(one * 1.01 / GPU_SHARE))
    assert forecast_of(on_gpu(), [full]).experts_per_job == 1
    twice = replace(full, gpu_memory=full.gpu_memory * 2)
    assert forecast_of(on_gpu(gpus_per_expert=0.5), [twice]).experts_per_job == 1
    assert forecast_of(on_gpu(), [replace(GPU, gpus=1, gpu_memory=0)]).experts_per_job == 1  # unknown GPU memory
    assert forecast_of(on_gpu(experts_per_job=5), [full]).experts_per_job == 5


@pytest.mark.parametrize(
    ("sections", "nodes", "message"),
    [
        ({"resources": {"cpus_per_expert": 64}}, [CPU, CPU], "64 CPUs"),
        ({"resources": {"gpus_per_expert": 1}}, [CPU], "1 GPUs"),
        ({}, [Node("small", 4, 0, 10**8)], "of memory"),
        ({}, [], "no nodes"),
    ],
    ids=str,
)
def test_work_that_fits_no_node_is_refused(planned, sections, nodes, message):
    plan = planned(**sections)
    with pytest.raises(InfeasibleError, match=message) as caught:
        check_feasible(plan, nodes)
    assert caught.value.fix
    if not plan.resources.gpus and nodes and nodes[0].cpus == 4 and nodes[0].memory < GB:
        assert "expert 'colours'" in caught.value.what
        assert "micro_batch" in caught.value.fix


def test_a_router_that_fits_no_node_is_refused(planned, monkeypatch):
    plan = planned(router={"layers": "all"})
    monkeypatch.setattr(router_forecast, "HALF", 10**8)  # bytes of a number: as if the features were wide
    forecast = forecast_of(plan, [CPU]).router
    last = forecast_of(planned(router={"layers": "last"}), [CPU]).router
    assert last.training.memory < forecast.training.memory > CPU.memory
    with pytest.raises(InfeasibleError, match=r"the router requires .*B of memory, and the largest node") as caught:
        check_router_fits(plan, read_library_state(plan, FakeRegistry([])), [CPU])
    assert "CPUs" not in caught.value.what.split(",")[0]
    assert "router.layers" in caught.value.fix
    assert "router.rows_per_task" in caught.value.fix
    fewer, growing = (
        planned(router={"rows_per_task": 1}),
        planned(resources={"gpus_per_expert": 0, "autoscaling": True, "max_parallel": 1}),
    )
    assert forecast_of(fewer, [CPU]).router.training.memory < forecast.training.memory  # the suggested fix helps
    check_router_fits(growing, read_library_state(growing, FakeRegistry([])), [CPU])
    cached = replace(read_library_state(plan, FakeRegistry([])), router=StageState("cached", None, ""))
    check_router_fits(plan, cached, [CPU])  # the router exists


def test_depths_are_compared_if_it_is_cheap_or_requested(planned, monkeypatch):
    last_layer = {"layers": "last"}
    cheap = forecast_of(planned(router=last_layer), [CPU]).router
    assert cheap.compares_depths
    monkeypatch.setattr(router_forecast, "MAX_COMPARISON_BYTES", 1)
    expensive = forecast_of(planned(router=last_layer), [CPU]).router
    assert not expensive.compares_depths
    # only the comparison itself takes more with all layers than with the last
    assert (expensive.training, expensive.comparing) == (cheap.training, cheap.comparing)
    assert cheap.testing.memory < cheap.comparing.memory
    requested = forecast_of(planned(router=last_layer | {"compare_depths": True}), [CPU]).router
    assert (requested.compares_depths, requested.comparing) == (True, cheap.comparing)
    assert not forecast_of(planned(router=last_layer | {"compare_depths": False}), [CPU]).router.compares_depths


def test_d18_the_memory_of_a_feature_job_is_that_of_a_pass_and_of_the_rows_of_a_split(planned, on_gpu):
    router = forecast_of(planned(), [CPU]).router
    a_pass = estimate_pass_memory(empty_body(planned().base), planned().base, "cpu").host
    row = 2 * 3 * 2 * tiny.WIDTH  # half precision, three hidden states, two poolings
    assert router.features.memory == a_pass + 2 * 144 * row  # of the training split, while the file is written
    assert a_pass < router.testing.memory
    few = planned(router={"rows_per_task": 1})
    assert forecast_of(few, [CPU]).router.features.memory == a_pass + 2 * 48 * row  # of the test split
    assert (router.features.cpus, router.features.gpus) == (1, 0)
    gpu = forecast_of(on_gpu(), [GPU]).router
    assert (gpu.features.gpus, gpu.testing.gpus, gpu.training.gpus) == (1, 1, 0)


def test_d19_the_routers_job_gets_the_cores_of_a_node_that_has_its_memory(planned):
    def cores(*nodes, **sections):
        return forecast_router(replace(planned(**sections), nodes=nodes), model).training.cpus

    model, small = empty_body(planned().base), Node("small", 32, 0, GB // 10)
    assert cores(CPU, GPU) == 16
    assert cores(CPU, small) == 4  # the other one has not its memory
    assert cores() == 1
    assert cores(GPU, resources={"max_parallel": 3, "cpus_per_expert": 2}) == 6
    assert cores(GPU, resources={"gpus_per_expert": 1, "accelerator_type": "H100"}) == 16


def test_d18_a_job_of_stage_2_that_fits_no_node_is_refused(planned, monkeypatch):
    plan = planned()
    state, room = read_library_state(plan, FakeRegistry([])), Node("cpu", 4, 0, 64 * GB)
    check_router_fits(plan, state, [room])
    huge = replace(forecast_router(plan, empty_body(plan.base)).features, memory=65 * GB)
    for field, what in (("features", "a job of the router's features"), ("testing", "the test of the router"),
                        ("comparing", "the comparison of routers on fewer layers")):  # fmt: skip
        forecast = replace(forecast_router(plan, empty_body(plan.base)), **{field: huge})
        with monkeypatch.context() as patch:
            patch.setattr(module, "forecast_router", lambda plan, model, forecast=forecast: forecast)
            with pytest.raises(InfeasibleError, match=rf"{what} requires .*65\.0 GB of memory") as caught:
                check_router_fits(plan, state, [room])
        assert "router.rows_per_task" in caught.value.fix


def test_the_disk_space_of_router_features_is_the_size_of_their_files(planned, base, tmp_path):
    plan = planned()
    for expert in plan.experts.values():
        folder = compute_features(base, expert.job.data, 5000, tmp_path / "kept", threads=1, device="cpu",
                                  report=lambda progress: None)  # fmt: skip
    kept = sum(file.stat().st_size for file in folder.parent.glob("*/*.safetensors"))
    assert forecast_of(plan, [CPU]).router.disk == pytest.approx(kept, rel=0.02)  # the rest is file headers


def test_a_job_that_does_not_fit_a_gpu_is_refused(on_gpu):
    check_feasible(on_gpu(), [GPU])
    with pytest.raises(InfeasibleError, match="of GPU memory"):
        check_feasible(on_gpu(), [replace(GPU, gpu_memory=10**8)])


def test_workers_reserve_the_memory_of_stage_2_where_as_many_of_them_fit(planned):
    """Otherwise each stage would start processes of its own, which takes seconds."""
    plan = planned()
    forecast = forecast_of(plan, [CPU])
    router = forecast.router
    most = max(each.memory for each in (router.features, router.training, router.testing, router.comparing))
    assert most > forecast.job_resources.memory
    assert forecast.worker_resources == replace(forecast.job_resources, memory=most)
    small = replace(CPU, memory=4 * forecast.job_resources.memory)
    assert forecast_of(plan, [small]).worker_resources == forecast.job_resources


def test_with_autoscaling_the_run_waits_for_nodes(planned):
    plan = planned(resources={"cpus_per_expert": 64, "gpus_per_expert": 0, "autoscaling": True, "max_parallel": 3})
    check_feasible(plan, [CPU])
    forecast = forecast_of(plan, [CPU])
    assert (forecast.waits_for_nodes, forecast.parallel_jobs, forecast.limiting_resource) == (True, 3, "max_parallel")


def test_work_that_fits_is_not_refused(planned):
    check_feasible(planned(), [CPU])
    check_feasible(planned(), [Node("small", 4, 0, 10**8)], tasks=[])  # there is nothing to train


def test_time_per_step_is_that_of_the_newest_version_of_the_task(planned):
    before, plan = planned(train={"steps": 10}), planned(train={"steps": 40})
    own = version_of(before, "colours", seconds_training=5.0, seconds_job=8.0, steps=10)
    forecast = forecast_of(plan, [replace(CPU, cpus=1)], [own])
    # animals has no version, so that of colours is used
    assert forecast.expert_seconds == {"colours": pytest.approx(3 + 20), "animals": pytest.approx(3 + 20)}
    assert forecast.total_seconds == pytest.approx(46)
    other = version_of(before, "animals", seconds_training=10.0, seconds_job=10.0, steps=10)
    both = forecast_of(plan, [CPU], [own, other])
    assert both.expert_seconds == {"colours": pytest.approx(23), "animals": pytest.approx(40)}
    assert both.total_seconds == pytest.approx(40)  # in parallel


def test_a_job_starts_in_the_place_that_is_free_first():
    assert module._total_seconds([[4.0], [3.0], [2.0], [1.0]], 2) == 5
    assert module._total_seconds([[4.0, 3.0], [2.0]], 2) == 7
    assert module._total_seconds([], 0) == 0
    assert module._total_seconds([[4.0], [None]], 2) is None


def test_time_is_unknown_without_a_version_on_this_base(planned):
    plan, before = planned(), planned(train={"steps": 10})
    assert forecast_of(plan, [CPU]).total_seconds is None
    old = version_of(before, "colours", seconds_training=5.0, seconds_job=8.0, steps=10)
    elsewhere = replace(old, tags={**old.tags, "base_digest": "another"})
    imported = replace(old, metrics={})
    assert forecast_of(plan, [CPU], [elsewhere, imported]).expert_seconds["colours"] is None


def test_cached_and_resumed_experts_take_less_time(planned):
    plan = planned()
    past = version_of(plan, "colours", seconds_training=40.0, seconds_job=40.0, steps=40)
    state = read_library_state(plan, FakeRegistry([past]))
    halfway = replace(state, experts={**state.experts, "animals": ExpertState("missing", step=30)})
    forecast = make_forecast(plan, halfway, [CPU])
    assert forecast.expert_seconds == {"colours": 0, "animals": pytest.approx(10)}
    assert forecast.jobs == 1


def test_the_trunk_takes_disk_space_and_saves_layers(planned):
    assert forecast_of(planned(), [CPU]).trunk is None
    plan = planned(adapter={"rank": 4, "layers": "1-"})
    trunk = forecast_of(plan, [CPU]).trunk
    assert (trunk.share, trunk.fits) == (0.5, True)
    data = plan.experts["colours"].job.data
    one = forecast_of(plan, [CPU], [version_of(plan, "animals")]).trunk.bytes
    tokens, rows = count_tokens(data, 32)
    assert one == tokens * 64 * 4 + rows * 64 * 4  # token states, and pooled states for the router
    assert trunk.bytes > one
    small = planned(adapter={"rank": 4, "layers": "1-"}, storage={"root": plan.config.storage.root, "trunk_gb": 1e-6})
    assert not forecast_of(small, [CPU]).trunk.fits
    off = planned(adapter={"rank": 4, "layers": "1-"}, storage={"root": plan.config.storage.root, "trunk_gb": 0})
    assert forecast_of(off, [CPU]).trunk is None


def test_a_training_that_reads_little_of_its_split_needs_no_states_of_it(planned):
    adapter, few = {"rank": 4, "layers": "1-"}, {"train": {"steps": 2, "batch_size": 8}}
    plan = planned(adapter=adapter, tasks={"colours": few})
    trunk, data = forecast_of(plan, [CPU]).trunk, plan.experts["colours"].job.data
    assert trunk.share == 0.25  # animals skips one of two layers
    whole = forecast_of(planned(adapter=adapter), [CPU]).trunk
    tokens, rows = count_tokens(data, 32, ["train"])
    assert whole.bytes - trunk.bytes == tokens * 64 * 4 + rows * 64 * 4


def test_tokens_are_estimated_from_file_metadata(planned):
    from ttmoe.base import load_tokenizer

    plan = planned()
    data, tokenizer = plan.experts["colours"].job.data, load_tokenizer(plan.base)
    rows = [tokenize(tokenizer, load_split(data, split), 32) for split in ("train", "validation", "test")]
    tokens, sequences = count_tokens(data, 32)
    assert sequences == sum(map(len, rows))
    assert 0.4 < tokens / sum(sum(split.token_counts) for split in rows) < 2.5
    assert count_tokens(data, 3)[0] == 3 * sequences  # truncated at max_length
