"""The recorder: operations run in order, and none is lost while the store is unavailable."""

from __future__ import annotations

import threading
import time

import pytest
import requests

import orchestrator.registry.retrying
from orchestrator.recording.recorder import Recorder


class Unavailable(requests.ConnectionError):
    """The store does not respond."""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(orchestrator.registry.retrying, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(orchestrator.registry.retrying, "_LONGEST_WAIT", 0.02)


def unavailable():
    raise Unavailable("no response")


def test_operations_run_in_order_in_another_thread():
    calls = []
    with Recorder(30) as recorder:
        for i in range(100):
            recorder.add(str(i), lambda i=i: calls.append((i, threading.current_thread().name)) or i)
    assert calls == [(i, "recorder") for i in range(100)]
    assert [(result.key, result.value) for result in recorder.pop_results()] == [(str(i), i) for i in range(100)]
    assert recorder.pending == 0


def test_a_result_says_how_long_its_operation_took():
    with Recorder(30) as recorder:
        recorder.add("long", lambda: time.sleep(0.05))
        recorder.add("error", lambda: [time.sleep(0.05), 1 / 0])
    long, error = recorder.pop_results()
    assert long.seconds >= 0.05
    assert error.seconds >= 0.05


def test_an_error_does_not_affect_other_operations():
    def wrong():
        raise ValueError("no")

    with Recorder(30) as recorder:
        recorder.add("a", wrong)
        recorder.add("b", lambda: 2)
    a, b = recorder.pop_results()
    assert isinstance(a.error, ValueError)
    assert (b.value, b.error) == (2, None)


def test_after_an_outage_all_operations_are_done_in_order():
    calls, written = [], []

    def operation(i):
        def call():
            calls.append(i)
            if len(calls) < 5:
                unavailable()
            written.append(i)

        return call

    with Recorder(30) as recorder:
        for i in range(3):
            recorder.add(str(i), operation(i))
    assert written == [0, 1, 2]
    assert calls == [0, 0, 0, 0, 0, 1, 2]
    assert recorder.unavailable_since is None
    assert not recorder.is_unresponsive
    assert all(result.error is None for result in recorder.pop_results())


def test_another_error_after_an_outage_ends_the_outage():
    calls = []

    def call():
        calls.append(1)
        if len(calls) < 3:
            unavailable()
        raise ValueError("no")

    with Recorder(30) as recorder:
        recorder.add("a", call)
    assert [type(result.error) for result in recorder.pop_results()] == [ValueError]
    assert (recorder.unavailable_since, recorder.final_error) == (None, None)


def test_during_an_outage_the_driver_is_not_blocked():
    restored = threading.Event()

    def call():
        if not restored.is_set():
            unavailable()

    began = time.monotonic()
    with Recorder(30) as recorder:
        recorder.add("a", call)
        recorder.add("b", lambda: None)
        while recorder.unavailable_since is None:
            assert time.monotonic() < began + 10
        assert began <= recorder.unavailable_since <= time.monotonic()
        assert recorder.is_unresponsive
        assert (recorder.pending, recorder.pop_results()) == (2, [])
        restored.set()
    assert len(recorder.pop_results()) == 2


def test_after_its_patience_the_recorder_attempts_nothing_more():
    attempts = []

    def call():
        attempts.append(1)
        unavailable()

    with Recorder(patience=0.1) as recorder:
        recorder.add("a", call)
        recorder.add("b", lambda: attempts.append("never"))
    assert isinstance(recorder.final_error, Unavailable)
    assert [type(result.error) for result in recorder.pop_results()] == [Unavailable, Unavailable]
    assert "never" not in attempts


def interrupt(operations, until):
    """Leave a recorder with Ctrl-C when ``until(recorder)`` is true."""
    try:
        with Recorder(600) as recorder:
            for key, call in operations:
                recorder.add(key, call)
            while not until(recorder):
                time.sleep(0.01)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return


def test_an_interruption_does_not_wait_for_an_unavailable_store(monkeypatch):
    monkeypatch.setattr(orchestrator.registry.retrying, "_FIRST_WAIT", 60)
    monkeypatch.setattr(orchestrator.registry.retrying, "_LONGEST_WAIT", 60)
    began = time.monotonic()
    interrupt([("a", unavailable)], lambda recorder: recorder.unavailable_since is not None)
    assert time.monotonic() - began < 10


def test_an_interruption_waits_for_a_store_that_responds():
    written = []
    operations = [(str(i), lambda i=i: (time.sleep(0.01), written.append(i))) for i in range(20)]
    interrupt(operations, lambda recorder: True)
    assert written == list(range(20))
