"""Nodes that a run can use, and the hardware of each, asked where the work will run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from cluster.attaching import cluster_address
from cluster.machine import available_cpus, free_memory
from orchestrator.config.runtime_sections import ResourceSettings
from orchestrator.pool.capacity import JobResources, Node
from ttmoe.errors import InputError
from workers.hardware import Gpu, Hardware, package_version, probe_hardware

_NODES = re.compile(r"(\d+)x(\d+)(?:x(\d+(?:\.\d+)?)([TGM]B))?", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([TGM]B)?", re.IGNORECASE)
_TFLOPS = 300
DECLARED = "declared node"  # begins the name of a node that a user describes
RAY_MEMORY_SHARE = 0.7  # of the free memory; Ray reserves the rest for its object store


def declared_nodes(texts: Sequence[str]) -> list[Node]:
    """Return nodes that a user describes, such as ``2x8x80GB``: two nodes with eight GPUs of 80 GB each.

    After a comma ``cpus=N`` and ``memory=SIZE`` may follow, of each node, and ``tflops=N``, what a GPU computes in
    training; by default 8 CPUs for each GPU, as much memory as its GPUs have together, and 300 TFLOP/s, a third of the
    peak of an H100 in bfloat16. Nodes without GPUs are ``4x0,cpus=16,memory=64GB``. GPUs compute in bfloat16.

    Raises:
        InputError: If a text is no description of nodes.
    """
    return [node for text in texts for node in _parse_nodes(text)]


def _parse_nodes(text: str) -> list[Node]:
    fix = "write COUNTxGPUSxGPU_MEMORY as in 2x8x80GB, with cpus=64 and memory=512GB after commas if they matter"
    shape, *options = (part.strip() for part in text.split(","))
    match = _NODES.fullmatch(shape)
    given = dict(option.split("=", 1) for option in options if "=" in option)
    sizes = {key: _SIZE.fullmatch(value) for key, value in given.items()}
    if not match or len(given) < len(options) or given.keys() - {"cpus", "memory", "tflops"} or not all(sizes.values()):
        raise InputError(f"{text!r} describes no nodes", where="--nodes", fix=fix)
    count, gpus, gpu_memory = int(match[1]), int(match[2]), _bytes(match[3], match[4])
    if not count or bool(gpus) != bool(gpu_memory) or (not gpus and given.keys() < {"cpus", "memory"}):
        what = f"{text!r} has no nodes, GPUs without memory, or neither GPUs nor cpus and memory"
        raise InputError(what, where="--nodes", fix=fix)
    size = {key: _bytes(match[1], match[2]) for key, match in sizes.items() if match}
    memory = int(RAY_MEMORY_SHARE * size.get("memory", gpus * gpu_memory))
    hardware = Hardware((Gpu("declared", gpu_memory, True),) * gpus, True, {})
    cpus, tflops = float(size.get("cpus", 8 * gpus)), float(size.get("tflops", _TFLOPS)) if gpus else 0.0
    return [
        Node(f"{DECLARED} {number}", cpus, float(gpus), memory, gpu_memory, hardware=hardware, tflops=tflops)
        for number in range(1, count + 1)
    ]


def _bytes(number: str | None, unit: str | None) -> int:
    return int(float(number or 0) * {"T": 1e12, "G": 1e9, "M": 1e6, "": 1}[(unit or "").upper()[:1]])


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
