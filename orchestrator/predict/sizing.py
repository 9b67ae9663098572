"""The number of workers on a cluster, and the CPUs and GPUs of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ttmoe.errors import InfeasibleError, InputError

_MAX_CPUS = 4  # of a worker without a GPU: more CPUs speed up one model less than another worker does


@dataclass(frozen=True)
class PoolSize:
    """A number of equal workers.

    Attributes:
        workers: Number of workers.
        cpus: CPUs of each.
        gpus: GPUs of each; may be a fraction.
    """

    workers: int
    cpus: int
    gpus: float

    @property
    def device(self) -> str:
        """The device of each worker: ``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"


def choose_pool_size(
    nodes: Sequence[Mapping[str, float]], chunks: int, device: str, workers: int | None, gpus: float | None
) -> PoolSize:
    """Return the number of workers for a cluster and their resources.

    Args:
        nodes: The resources of each node: ``{"CPU": 8, "GPU": 1}``.
        chunks: Number of chunks of work; more workers are not started.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: Number of workers. None starts as many as fit.
        gpus: GPUs of a worker. None means 1 if the cluster has GPUs and ``device`` is not ``cpu``.

    Raises:
        InputError: If ``gpus`` contradicts ``device``.
        InfeasibleError: If a worker fits on no node.
    """
    if device == "cpu" and gpus:
        fix = "remove --gpus-per-worker, or --device cpu"
        raise InputError("a worker on the CPU needs no GPU", where="--gpus-per-worker", fix=fix)
    most = max((node.get("GPU", 0) for node in nodes), default=0)
    if gpus is None:
        gpus = 0 if device == "cpu" or (device == "auto" and most < 1) else 1
    elif device == "cuda" and not gpus:
        raise InputError("a worker on cuda needs a GPU", where="--gpus-per-worker", fix="remove this option")
    cpus = 1 if gpus else _cpus_per_worker([int(node.get("CPU", 0)) for node in nodes], workers or 1)
    fitting = sum(_workers_on(node, cpus, gpus) for node in nodes)
    if not fitting:
        what = f"a worker with {gpus:g} GPUs fits on no node; the largest has {most:g}"
        raise InfeasibleError(what, where="predict --ray", fix="lower --gpus-per-worker, or use --device cpu")
    return PoolSize(min(workers or fitting, chunks), cpus, gpus)


def _cpus_per_worker(node_cpus: Sequence[int], workers: int) -> int:
    return max(1, min(_MAX_CPUS, max(node_cpus, default=0), sum(node_cpus) // workers))


def _workers_on(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    by_cpus = int(node.get("CPU", 0) // cpus)
    return min(by_cpus, int(node.get("GPU", 0) / gpus + 1e-6)) if gpus else by_cpus
