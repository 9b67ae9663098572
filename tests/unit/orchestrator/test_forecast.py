"""Memory, places, disk and time of a plan, and what fits nowhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from library_plan import FakeRegistry, plan_of, version_of

from orchestrator.plan import forecast as module
from orchestrator.plan import router_forecast
from orchestrator.plan.forecast import check_feasible, check_router_fits, make_forecast
from orchestrator.plan.library_state import ExpertState, StageState, read_library_state
from orchestrator.plan.nodes import available_nodes, free_memory
from orchestrator.plan.trunk_forecast import count_tokens
from orchestrator.pool.capacity import GB, Node
from ttmoe.errors import InfeasibleError
from workers.cache.feature_store import compute_features
from workers.data.prepared import load_split
from workers.training.batches import tokenize

CPU = Node("cpu", 4, 0, 64 * GB)
GPU = Node("gpu", 16, 2, 64 * GB, 80 * GB)


@pytest.fixture
def planned(base_folder, tmp_path):
    return lambda **sections: plan_of(base_folder, tmp_path, **sections)


@pytest.fixture
def on_gpu(planned):
    """A plan whose jobs run on a GPU, as it would be made where there is one."""

    def make(**resources):
        train = {"batch_size": 20000}  # so that what training keeps outweighs evaluation
        plan = planned(resources={"gpus_per_expert": 1, **resources}, train=train)
        experts = {k: replace(e, job=replace(e.job, device="cuda")) for k, e in plan.experts.items()}
        return replace(plan, experts=experts)

    return make


def outlook(plan, nodes, versions=()):
    registry = FakeRegistry(list(versions))
    return make_forecast(plan, read_library_state(plan, registry), registry, nodes)


def test_the_scarce_resource_decides_how_many_run_at_a_time(planned):
    found = outlook(planned(), [CPU])
    assert (found.jobs, found.experts_per_job, found.at_once, found.limiting_resource) == (2, 1, 4, "CPU")
    assert found.base_loads == 2  # not more processes than jobs
    assert found.need.memory == max(memory.host for memory in found.memory.values())
    two = outlook(planned(resources={"cpus_per_expert": 2}), [CPU, CPU])
    assert (two.at_once, two.limiting_resource) == (4, "CPU")
    tight = outlook(planned(), [replace(CPU, memory=int(found.need.memory * 1.5))])
    assert (tight.at_once, tight.limiting_resource) == (1, "memory")
    limited = outlook(planned(resources={"max_parallel": 1}), [CPU])
    assert (limited.at_once, limited.limiting_resource, limited.base_loads) == (1, "max_parallel", 1)


def test_experts_in_a_job_are_as_asked(planned):
    found = outlook(planned(resources={"experts_per_job": 2}), [CPU])
    assert (found.jobs, found.experts_per_job) == (1, 2)
    assert found.need.memory > outlook(planned(), [CPU]).need.memory


def test_auto_packs_a_gpu_as_far_as_its_memory_goes(on_gpu):
    assert outlook(on_gpu(), [GPU]).experts_per_job == 1  # two experts, and two GPUs that would both be busy
    assert outlook(on_gpu(), [replace(GPU, gpus=1)]).experts_per_job == 2  # all there are
    one = max(memory.gpu for memory in outlook(on_gpu(), [GPU]).memory.values())
    full = replace(GPU, gpus=1, gpu_memory=int(one * 1.01 / module.GPU_SHARE))
    assert outlook(on_gpu(), [full]).experts_per_job == 1
    assert outlook(on_gpu(gpus_per_expert=0.5), [replace(full, gpu_memory=full.gpu_memory * 2)]).experts_per_job == 1
    assert outlook(on_gpu(), [replace(GPU, gpus=1, gpu_memory=0)]).experts_per_job == 1  # not known
    assert outlook(on_gpu(experts_per_job=5), [full]).experts_per_job == 5


@pytest.mark.parametrize(
    ("sections", "nodes", "said"),
    [
        ({"resources": {"cpus_per_expert": 64}}, [CPU, CPU], "64 CPUs"),
        ({"resources": {"gpus_per_expert": 1}}, [CPU], "1 GPUs"),
        ({}, [Node("small", 4, 0, 10**8)], "of memory"),
        ({}, [], "no nodes"),
    ],
    ids=str,
)
def test_what_fits_nowhere_is_refused(planned, sections, nodes, said):
    plan = planned(**sections)
    with pytest.raises(InfeasibleError, match=said) as caught:
        check_feasible(plan, nodes)
    assert caught.value.fix
    if not plan.config.resources.gpus and nodes and nodes[0].cpus == 4 and nodes[0].memory < GB:
        assert "expert 'colours'" in caught.value.what
        assert "micro_batch" in caught.value.fix


def test_a_router_that_fits_nowhere_is_refused(planned, monkeypatch):
    plan = planned(router={"layers": "all"})
    monkeypatch.setattr(router_forecast, "HALF", 10**8)  # as if the features were wide: they are counted in halves
    found = outlook(plan, [CPU]).router
    assert outlook(planned(router={"layers": "last"}), [CPU]).router.memory < found.memory > CPU.memory
    with pytest.raises(InfeasibleError, match=r"the router asks for .* GB of memory, and the largest node") as caught:
        check_router_fits(plan, read_library_state(plan, FakeRegistry([])), [CPU])
    assert "CPUs" not in caught.value.what.split(",")[0]
    assert "router.rows_per_task" in caught.value.fix
    fewer, growing = (planned(router={"rows_per_task": 1}), planned(resources={"autoscaling": True, "max_parallel": 1}))
    assert outlook(fewer, [CPU]).router.memory < found.memory  # what is advised helps
    check_router_fits(growing, read_library_state(growing, FakeRegistry([])), [CPU])
    cached = replace(read_library_state(plan, FakeRegistry([])), router=StageState("cached", None, ""))
    check_router_fits(plan, cached, [CPU])  # it is there


def test_depths_are_compared_while_that_is_cheap_or_asked_for(planned, monkeypatch):
    of_last = {"layers": "last"}
    cheap = outlook(planned(router=of_last), [CPU]).router
    assert cheap.compares_depths
    monkeypatch.setattr(router_forecast, "MAX_COMPARISON_BYTES", 1)
    dear = outlook(planned(router=of_last), [CPU]).router
    assert not dear.compares_depths
    assert dear.memory < cheap.memory
    asked = outlook(planned(router=of_last | {"compare_depths": True}), [CPU]).router
    assert (asked.compares_depths, asked.memory) == (True, cheap.memory)
    assert not outlook(planned(router=of_last | {"compare_depths": False}), [CPU]).router.compares_depths


def test_the_disk_of_router_features_is_what_their_files_take(planned, base, tmp_path):
    plan = planned()
    for expert in plan.experts.values():
        folder = compute_features(base, expert.job.data, 5000, tmp_path / "kept", threads=1, device="cpu",
                                  report=lambda progress: None)  # fmt: skip
    kept = sum(file.stat().st_size for file in folder.parent.glob("*/*.safetensors"))
    assert outlook(plan, [CPU]).router.disk == pytest.approx(kept, rel=0.02)  # and each file's header


def test_what_does_not_fit_a_gpu_is_refused(on_gpu):
    check_feasible(on_gpu(), [GPU])
    with pytest.raises(InfeasibleError, match="of a GPU"):
        check_feasible(on_gpu(), [replace(GPU, gpu_memory=10**8)])


def test_a_cluster_that_grows_is_waited_for(planned):
    plan = planned(resources={"cpus_per_expert": 64, "autoscaling": True, "max_parallel": 3})
    check_feasible(plan, [CPU])
    found = outlook(plan, [CPU])
    assert (found.waits, found.at_once, found.limiting_resource) == (True, 3, "max_parallel")


def test_what_fits_is_not_refused(planned):
    check_feasible(planned(), [CPU])
    check_feasible(planned(), [Node("small", 4, 0, 10**8)], tasks=[])  # there is nothing to train


def test_time_is_that_of_the_tasks_own_last_run_by_the_step(planned):
    before, plan = planned(train={"steps": 10}), planned(train={"steps": 40})
    own = version_of(before, "colours", seconds_training=5.0, seconds_job=8.0, steps=10)
    found = outlook(plan, [replace(CPU, cpus=1)], [own])
    assert found.seconds == {"colours": pytest.approx(3 + 20), "animals": pytest.approx(3 + 20)}  # the only one there
    assert found.total == pytest.approx(46)
    other = version_of(before, "animals", seconds_training=10.0, seconds_job=10.0, steps=10)
    both = outlook(plan, [CPU], [own, other])
    assert both.seconds == {"colours": pytest.approx(23), "animals": pytest.approx(40)}
    assert both.total == pytest.approx(40)  # side by side


def test_jobs_go_to_the_place_that_is_free_first():
    assert module._total([[4.0], [3.0], [2.0], [1.0]], 2) == 5
    assert module._total([[4.0, 3.0], [2.0]], 2) == 7
    assert module._total([], 0) == 0
    assert module._total([[4.0], [None]], 2) is None


def test_time_is_not_known_without_a_past_run_on_this_base(planned):
    plan, before = planned(), planned(train={"steps": 10})
    assert outlook(plan, [CPU]).total is None
    old = version_of(before, "colours", seconds_training=5.0, seconds_job=8.0, steps=10)
    elsewhere = replace(old, tags={**old.tags, "base_digest": "another"})
    imported = replace(old, metrics={})
    assert outlook(plan, [CPU], [elsewhere, imported]).seconds["colours"] is None


def test_cached_and_continued_experts_take_less(planned):
    plan = planned()
    past = version_of(plan, "colours", seconds_training=40.0, seconds_job=40.0, steps=40)
    standing = read_library_state(plan, FakeRegistry([past]))
    halfway = replace(standing, experts={**standing.experts, "animals": ExpertState("missing", step=30)})
    found = make_forecast(plan, halfway, None, [CPU])
    assert found.seconds == {"colours": 0, "animals": pytest.approx(10)}
    assert found.jobs == 1


def test_the_trunk_takes_disk_and_saves_layers(planned):
    assert outlook(planned(), [CPU]).trunk is None
    plan = planned(adapter={"rank": 4, "layers": "1-"})
    trunk = outlook(plan, [CPU]).trunk
    assert (trunk.share, trunk.fits) == (0.5, True)
    data = plan.experts["colours"].job.data
    one = outlook(plan, [CPU], [version_of(plan, "animals")]).trunk.bytes
    tokens, rows = count_tokens(data, 32)
    assert one == tokens * 64 * 4 + rows * 64 * 4  # states, and what the router reads
    assert trunk.bytes > one
    small = planned(adapter={"rank": 4, "layers": "1-"}, storage={"root": plan.config.storage.root, "trunk_gb": 1e-6})
    assert not outlook(small, [CPU]).trunk.fits
    off = planned(adapter={"rank": 4, "layers": "1-"}, storage={"root": plan.config.storage.root, "trunk_gb": 0})
    assert outlook(off, [CPU]).trunk is None


def test_tokens_are_told_about_by_the_files_alone(planned):
    from ttmoe.base import load_tokenizer

    plan = planned()
    data, tokenizer = plan.experts["colours"].job.data, load_tokenizer(plan.base)
    rows = [tokenize(tokenizer, load_split(data, split), 32) for split in ("train", "validation", "test")]
    tokens, sequences = count_tokens(data, 32)
    assert sequences == sum(map(len, rows))
    assert 0.4 < tokens / sum(sum(each.tokens) for each in rows) < 2.5
    assert count_tokens(data, 3)[0] == 3 * sequences  # no more than is read


def test_this_machine_is_what_there_is_without_a_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (node,) = available_nodes()
    assert node.cpus >= 1
    assert 0 < node.memory < free_memory() * 1.2
