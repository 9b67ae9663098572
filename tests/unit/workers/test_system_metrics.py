"""System metrics: named as MLflow's UI expects, and sampled rarely enough to cost nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workers.system_metrics import INTERVAL, SystemMetrics


def test_a_sample_is_taken_once_in_an_interval() -> None:
    now = [0.0]
    system = SystemMetrics(lambda: now[0])
    assert system.sample() == {}
    now[0] = INTERVAL
    sample = system.sample()
    assert sample.keys() >= {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    assert 0 < sample["system/system_memory_usage_percentage"] < 100
    assert system.sample() == {}


def test_a_machine_that_hides_its_figures_stops_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr("psutil.cpu_percent", refuse)
    now = [0.0]
    system = SystemMetrics(lambda: now[0])
    now[0] = INTERVAL
    assert system.sample() == {}


def test_a_gpu_without_utilization_still_shows_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def utilization(index: int) -> int:
        raise ModuleNotFoundError("pynvml")

    cuda = SimpleNamespace(is_initialized=lambda: True, device_count=lambda: 1, mem_get_info=lambda i: (6e9, 8e9),
                           utilization=utilization)  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "torch", SimpleNamespace(cuda=cuda))
    now = [0.0]
    system = SystemMetrics(lambda: now[0])
    now[0] = INTERVAL
    gpu = {name: value for name, value in system.sample().items() if "gpu" in name}
    assert gpu == {"system/gpu_0_memory_usage_megabytes": 2000.0, "system/gpu_0_memory_usage_percentage": 25.0}
