"""What the hardware of the nodes decides: GPUs of an expert, number format, nodes that may be used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.attaching import cluster_address
from orchestrator.config.runtime_sections import ResourceSettings
from orchestrator.plan import nodes as module
from orchestrator.plan.nodes import available_nodes, choose_base_dtype, expert_resources
from orchestrator.pool.capacity import JobResources, Node, jobs_on_node, limiting_resource, require_fits
from ttmoe.errors import InfeasibleError, InputError
from workers.hardware import Gpu, Hardware, package_version

OWN = {"ttmoe": package_version("ttmoe")}
SLOW = Hardware((), False, OWN)
H100 = Hardware((Gpu("H100", 80 * 10**9, True), Gpu("H100", 79 * 10**9, True)), False, OWN)
T4 = Hardware((Gpu("T4", 16 * 10**9, False),), True, OWN)
HEAD = Node("head", 4, 0, 10**10, hardware=SLOW)
FAST = Node("fast", 16, 2, 10**11, 79 * 10**9, accelerators=("H100",), labels=(("zone", "a"),), hardware=H100)
OLD = Node("old", 8, 1, 10**11, 16 * 10**9, accelerators=("T4",), hardware=T4)


def resources(nodes, **settings):
    return expert_resources(ResourceSettings(**settings), nodes)


def test_an_expert_takes_a_gpu_where_a_node_has_one():
    assert resources([HEAD]).gpus == 0
    assert resources([HEAD, FAST]).gpus == 1
    assert resources([HEAD, FAST], gpus_per_expert=0).gpus == 0
    assert resources([HEAD], gpus_per_expert=0.5).gpus == 0.5  # refused later, as no node has it
    assert resources([HEAD, FAST], node_labels={"zone": "b"}).gpus == 0


@pytest.mark.parametrize("wrong", [1.5, 8, -1])
def test_an_expert_cannot_take_more_than_a_gpu(wrong):
    with pytest.raises(ValueError, match="gpus_per_expert"):
        ResourceSettings(gpus_per_expert=wrong)


def test_gpus_that_torch_cannot_use_are_refused_unless_they_are_not_wanted():
    useless = replace(FAST, hardware=SLOW)
    with pytest.raises(InputError, match="node fast has 2 GPUs for Ray, and torch can use none"):
        resources([HEAD, useless])
    assert resources([HEAD, useless], gpus_per_expert=0).gpus == 0


def test_with_autoscaling_nodes_to_come_are_not_guessed():
    growing = {"autoscaling": True, "max_parallel": 2}
    with pytest.raises(InputError, match="no node has a GPU yet") as caught:
        resources([HEAD], **growing)
    assert caught.value.where == "resources.gpus_per_expert"
    assert resources([HEAD], gpus_per_expert=1, **growing).gpus == 1
    assert resources([FAST], **growing).gpus == 1


@pytest.mark.parametrize(
    ("job", "nodes", "dtype"),
    [
        (JobResources(1, 1), [HEAD, FAST], "bfloat16"),  # the head's CPU does not count
        (JobResources(1, 1), [FAST, OLD], "float32"),
        (JobResources(1, 1, 0, "H100"), [FAST, OLD], "bfloat16"),
        (JobResources(1, 0), [OLD], "bfloat16"),
        (JobResources(1, 0), [OLD, HEAD], "float32"),
        (JobResources(1, 0.5), [HEAD, FAST], "bfloat16"),
        (JobResources(1, 0), [], "float32"),
    ],
)
def test_the_number_format_is_what_all_nodes_compute_natively(job, nodes, dtype):
    assert choose_base_dtype(job, nodes) == dtype


def test_jobs_run_where_the_type_of_gpu_and_the_labels_are():
    nodes, of_type = [HEAD, FAST, OLD], JobResources(1, 1, 0, "T4")
    assert [jobs_on_node(node, of_type) for node in nodes] == [0, 0, 1]
    labelled = JobResources(1, 0, 0, None, (("zone", "a"),))
    assert [jobs_on_node(node, labelled) for node in nodes] == [0, 16, 0]
    assert limiting_resource(nodes, of_type) == "GPU"
    require_fits(nodes, labelled, "a job")
    with pytest.raises(InfeasibleError, match="accelerator type A100, which no node has") as caught:
        require_fits(nodes, JobResources(1, 1, 0, "A100"), "a job")
    assert "H100, T4" in caught.value.fix


def test_without_a_cluster_this_machine_is_the_only_node(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(module, "free_memory", lambda: 10**10)
    monkeypatch.setattr(module, "available_cpus", lambda: 3)
    (node,) = available_nodes()
    assert (node.cpus, node.memory, node.gpus) == (3, 7 * 10**9, len(node.hardware.gpus))
    assert node.hardware.versions["torch"]


def test_a_node_with_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(module, "probe_hardware", lambda: replace(SLOW, versions={"ttmoe": "0.0.1"}))
    with pytest.raises(InputError, match=r"node this machine has ttmoe 0.0.1, this machine"):
        available_nodes()


@pytest.mark.parametrize(("value", "address"), [("local", None), ("", None), ("head:6379", "head:6379")])
def test_rays_own_word_for_no_cluster(monkeypatch, value, address):
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address() == address
    if address is None:
        assert [node.name for node in available_nodes()] == ["this machine"]
