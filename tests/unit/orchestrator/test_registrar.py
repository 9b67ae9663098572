"""The registrar: an expert's curve is written while it trains; one that ends at once is recorded in one operation."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import orchestrator.recording.registrar as module
from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.pool.work_units import JobEvent
from orchestrator.recording.recorder import OperationResult
from orchestrator.recording.registrar import Registrar, Stage1Result
from workers.expert_result import ExpertResult
from workers.failure import Failure
from workers.progress import Progress

VIEW: Any = SimpleNamespace(update=lambda *_: None, set_state=lambda *_: None)
RESULT = ExpertResult("trec", "aa11", {"test.accuracy": 0.5}, 10, "d", "folder")


class Calls:
    """Stands for the operations, the recorder and the view: keeps what was called."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.plan, self.is_unresponsive = SimpleNamespace(config=None), False

    def add(self, key: str, call: Any) -> None:
        call()

    def pop_results(self) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.made.append((name, *args, *kwargs.values()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


def trains(registrar: Registrar, step: int) -> None:
    registrar.handle_event(JobEvent("trec", ((1.0, Progress("training", step, 9, {"train.loss": 1 / step})),)))


def test_curves_are_written_while_an_expert_trains(clock: Any) -> None:
    calls = Calls()
    registrar = Registrar(calls, calls, VIEW, Stage1Result())
    trains(registrar, 1)
    assert calls.made == []
    clock.now += module.LOG_INTERVAL
    trains(registrar, 2)
    assert calls.made == [("log_metrics", "trec", [("train.loss", 1.0, 1, 1000)])]
    registrar.handle_event(JobEvent("trec", result=RESULT, done=True))
    assert calls.made[1:] == [("register", "trec", RESULT, [("train.loss", 0.5, 2, 1000)])]


def test_an_expert_that_was_interrupted_keeps_its_last_metrics(clock: Any) -> None:
    calls = Calls()
    registrar = Registrar(calls, calls, VIEW, Stage1Result())
    trains(registrar, 1)
    registrar.stop_open_runs()
    assert calls.made == [("end_run", "trec", "KILLED", [("train.loss", 1.0, 1, 1000)])]


def test_failures_of_a_device_are_incidents_and_do_not_stop_the_stage(clock: Any) -> None:
    """The same number of errors of the code does."""
    calls, result = Calls(), Stage1Result()
    calls.plan.config = SimpleNamespace(failures=FailureSettings(stop_after=3))
    registrar = Registrar(calls, calls, VIEW, result)
    failure = Failure("device", "AcceleratorError", "on GPU 0 of node 10.0.0.1: CUDA error")
    for task in "abc":
        registrar.handle_event(JobEvent(task, failure=failure, action="not retried: device failed", done=True))
    assert [(each.key, each.failure, each.action) for each in result.incidents] == [
        (task, failure, "not retried: device failed") for task in "abc"]  # fmt: skip
    assert result.stopped is None
    for task in "def":
        registrar.handle_event(JobEvent(task, failure=replace(failure, kind="code"), done=True))
    assert result.stopped


def test_an_error_of_the_list_of_runs_names_no_task(clock: Any) -> None:
    said: list[str] = []
    view = SimpleNamespace(print=said.append)
    registrar = Registrar(Calls(), Calls(), view, Stage1Result())
    for key in ("read", "fail trec"):
        registrar._process_result(OperationResult(key, error=ValueError("odd")))
    assert said == ["runs are searched for one by one: odd", "the MLflow run of trec is incomplete: odd"]
