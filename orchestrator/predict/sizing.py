"""How many processes answer on a cluster, and what each of them takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ttmoe.errors import InfeasibleError, InputError

_CPUS = 4  # of a process without a GPU: more of them speed up one model less than another process does


@dataclass(frozen=True)
class PoolSize:
    """``workers`` processes, each with so many CPUs and GPUs of one node."""

    workers: int
    cpus: int
    gpus: float

    @property
    def device(self) -> str:
        """What each computes on."""
        return "cuda" if self.gpus else "cpu"


def choose_pool_size(
    nodes: Sequence[Mapping[str, float]], pieces: int, device: str, workers: int | None, gpus: float | None
) -> PoolSize:
    """The pool for so many pieces of work on nodes of ``{"CPU": ..., "GPU": ...}``.

    A process takes ``gpus`` (by default one where the cluster has any, unless ``device`` is cpu), and without a GPU up
    to four CPUs; by default there are as many processes as fit. Raises InfeasibleError where none fits on any node.
    """
    if device == "cpu" and gpus:
        raise InputError("a worker on the CPU needs no GPU", where="--gpus-per-worker", fix="leave out one of the two")
    most = max((node.get("GPU", 0) for node in nodes), default=0)
    if gpus is None:
        gpus = 0 if device == "cpu" or (device == "auto" and most < 1) else 1
    elif device == "cuda" and not gpus:
        raise InputError("a worker on cuda needs a GPU", where="--gpus-per-worker", fix="leave it out")
    cpus = 1 if gpus else _cpus([int(node.get("CPU", 0)) for node in nodes], workers or 1)
    fitting = sum(_fitting(node, cpus, gpus) for node in nodes)
    if not fitting:
        what = f"a worker with {gpus:g} GPUs fits on no node; the largest has {most:g}"
        raise InfeasibleError(what, where="predict --ray", fix="give another --gpus-per-worker, or --device cpu")
    return PoolSize(min(workers or fitting, pieces), cpus, gpus)


def _cpus(there: Sequence[int], workers: int) -> int:
    """Of each process: few enough for so many ``workers``."""
    return max(1, min(_CPUS, max(there, default=0), sum(there) // workers))


def _fitting(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    by_cpu = int(node.get("CPU", 0) // cpus)
    return min(by_cpu, int(node.get("GPU", 0) / gpus + 1e-6)) if gpus else by_cpu
