"""Nodes that a run can use, and the hardware of each, asked where the work will run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.attaching import cluster_address
from cluster.machine import available_cpus, free_memory
from orchestrator.config.runtime_sections import ResourceSettings
from orchestrator.pool.capacity import JobResources, Node
from ttmoe.errors import InputError
from workers.hardware import Hardware, package_version, probe_hardware

RAY_MEMORY_SHARE = 0.7  # of the free memory; Ray reserves the rest for its object store


def available_nodes() -> list[Node]:
    """Return the nodes of the cluster of ``RAY_ADDRESS``; if it is not set, this machine as one node.

    One task on one node of each kind says what its hardware is; nodes of one kind have equal resources.

    Raises:
        ClusterError: If the cluster cannot be used.
        InputError: If a node has another version of ttmoe than this machine.
    """
    if cluster_address():
        from cluster.local import ray_session
        from orchestrator.pool.ray_workers import call_on_nodes, cluster_nodes

        with ray_session():
            nodes = cluster_nodes()
            kinds = {_kind(node): node for node in nodes}
            found = dict(zip(kinds, call_on_nodes(list(kinds.values()), probe_hardware), strict=True))
        return [_with_hardware(node, found[_kind(node)]) for node in nodes]
    memory = int(RAY_MEMORY_SHARE * free_memory())
    hardware = probe_hardware()
    return [_with_hardware(Node("this machine", float(available_cpus()), float(len(hardware.gpus)), memory), hardware)]


def expert_resources(settings: ResourceSettings, nodes: Sequence[Node]) -> JobResources:
    """Return what the training of one expert reserves, without its memory; ``gpus_per_expert: auto`` is resolved.

    Args:
        settings: The section ``resources`` of a config.
        nodes: Nodes of the cluster.

    Raises:
        InputError: If Ray counts GPUs that torch cannot use, or if the nodes that may come with ``autoscaling`` decide.
    """
    job = JobResources(settings.cpus_per_expert, 0, 0, settings.accelerator_type, tuple(settings.node_labels.items()))
    with_gpus = [node for node in nodes if node.gpus >= 1 and node.suits(job)]
    gpus = settings.gpus_per_expert
    if gpus == "auto" and not with_gpus and settings.autoscaling:
        what = "no node has a GPU yet, so `auto` cannot tell whether those to come will have one"
        raise InputError(what, where="resources.gpus_per_expert", fix="set it to 1, or to 0 for experts on CPUs")
    job = replace(job, gpus=float(bool(with_gpus) if gpus == "auto" else gpus))
    for node in with_gpus if job.gpus else ():
        if node.hardware and not node.hardware.gpus:
            what = f"node {node.name} has {node.gpus:g} GPUs for Ray, and torch can use none of them"
            fix = "install a build of torch for these GPUs there, or set resources.gpus_per_expert to 0"
            raise InputError(what, where="the cluster", fix=fix)
    return job


def choose_base_dtype(job: JobResources, nodes: Sequence[Node]) -> str:
    """Return ``bfloat16`` if every node that can run the job computes in it natively, else ``float32``."""
    device = "cuda" if job.gpus else "cpu"
    suitable = [node.hardware for node in nodes if node.hardware and node.suits(job) and node.gpus >= min(1, job.gpus)]
    fast = bool(suitable) and all(hardware.computes_bf16(device) for hardware in suitable)
    return "bfloat16" if fast else "float32"


def _kind(node: Node) -> Node:
    """Return what nodes of one kind have in common. Their memory differs by some pages."""
    return replace(node, name="", id="", memory=node.memory >> 30)


def _with_hardware(node: Node, hardware: Hardware) -> Node:
    own, there = package_version("ttmoe"), hardware.versions["ttmoe"]
    if there != own:
        what = f"node {node.name} has ttmoe {there or 'not installed'}, this machine {own}"
        raise InputError(what, where="the cluster", fix="install the same version on every node")
    return replace(node, hardware=hardware, gpu_memory=min((gpu.memory for gpu in hardware.gpus), default=0))
