"""System metrics of a worker's machine, under the names that MLflow's UI shows on its tab *System metrics*."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

_REFUSED = (OSError, psutil.Error)  # a container may hide /proc; training does not depend on it
INTERVAL = 10.0  # seconds between two samples of a process; an expert that takes less may have none


class SystemMetrics:
    """Samples of a machine's CPU, memory and GPUs, at most one every INTERVAL seconds.

    Args:
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, clock()
        with suppress(*_REFUSED):
            psutil.cpu_percent()  # the next call measures since this one

    def sample(self) -> dict[str, float]:
        """Return the metrics by name, or an empty dict if the last sample is younger than INTERVAL."""
        if self._clock() - self._last < INTERVAL:
            return {}
        self._last, machine = self._clock(), {}
        with suppress(*_REFUSED):
            memory = psutil.virtual_memory()
            machine = {
                "system/cpu_utilization_percentage": psutil.cpu_percent(),
                "system/system_memory_usage_megabytes": memory.used / 1e6,
                "system/system_memory_usage_percentage": memory.percent,
            }
        return machine | _gpu_metrics()


def _gpu_metrics() -> dict[str, float]:
    """Return memory and, where pynvml is installed, utilization of the GPUs that this process uses."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return {}
    metrics: dict[str, float] = {}
    for i in range(cuda.device_count()):
        with suppress(Exception):  # a driver may refuse to answer; training does not depend on it
            free, total = cuda.mem_get_info(i)
            metrics[f"system/gpu_{i}_memory_usage_megabytes"] = (total - free) / 1e6
            metrics[f"system/gpu_{i}_memory_usage_percentage"] = 100 * (total - free) / total
            metrics[f"system/gpu_{i}_utilization_percentage"] = float(cuda.utilization(i))
    return metrics
