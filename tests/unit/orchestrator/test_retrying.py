"""The retry policy for an unavailable store."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests

from orchestrator.registry import retry_while_unavailable
from orchestrator.registry.retrying import RetryingStore, retried
from ttmoe.errors import WorkFailedError


class Clock:
    """A clock that advances by the waits of the policy; in place of an Event too, which it never sets."""

    def __init__(self):
        self.now, self.waits = 1000.0, []

    def wait(self, timeout):
        self.waits.append(timeout)
        self.now += timeout

    def is_set(self):
        return False


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


class Failing:
    """A function that fails ``count`` times, each attempt taking ``seconds``."""

    def __init__(self, clock, count, seconds=0.0, error=requests.ConnectionError):
        self.clock, self.count, self.seconds, self.error = clock, count, seconds, error
        self.calls = 0

    def __call__(self, *args):
        self.calls += 1
        self.clock.now += self.seconds
        if self.calls <= self.count:
            raise self.error("no response")
        return args


def test_waits_double_up_to_fifteen_seconds_and_the_outage_is_reported_once(clock):
    outages, function = [], Failing(clock, 7)
    assert retry_while_unavailable(600, lambda: outages.append(clock.now), clock)(function, 1, 2) == (1, 2)
    assert clock.waits == [1, 2, 4, 8, 15, 15, 15]
    assert outages == [1000.0]


def test_one_policy_can_be_used_again(clock):
    outages = []
    retrying = retry_while_unavailable(20, lambda: outages.append(clock.now), clock)
    for _ in range(3):
        retrying(Failing(clock, 3))
        clock.now += 100
    assert clock.waits == [1, 2, 4] * 3
    assert len(outages) == 3


def test_the_patience_counts_from_the_first_failure(clock):
    function = Failing(clock, 100, seconds=10)
    with pytest.raises(requests.ConnectionError):
        retry_while_unavailable(20, lambda: None, clock)(function)
    assert clock.waits == [1, 2]  # failures 0, 11 and 23 s after the first one
    assert function.calls == 3


def test_another_error_is_raised_at_once(clock):
    function = Failing(clock, 1, error=ValueError)
    with pytest.raises(ValueError, match="no response"):
        retry_while_unavailable(600, lambda: None, clock)(function)
    assert function.calls == 1


def test_ctrl_c_while_a_connection_error_is_handled_is_not_retried(clock):
    calls = []

    def function():
        calls.append(1)
        try:
            raise requests.ConnectionError
        except requests.ConnectionError:
            raise KeyboardInterrupt  # noqa: B904  its context is the connection error

    with pytest.raises(KeyboardInterrupt):
        retry_while_unavailable(600, lambda: None, clock)(function)
    assert calls == [1]


def test_a_retried_operation_notifies_once_and_then_fails_the_run(clock, monkeypatch):
    monkeypatch.setattr("orchestrator.registry.retrying.sleep_using_event", lambda event: clock.wait)
    messages, function = [], Failing(clock, 100)
    store = RetryingStore(None, "http://store", Path("unused"), patience=60, notify=messages.append)
    with pytest.raises(WorkFailedError, match=r"did not respond for 1 minutes \(no response\)"):
        retried(function)(store)
    assert messages == ["the MLflow store does not respond; retrying for up to 1 minutes"]
    assert clock.waits == [1, 2, 4, 8, 15, 15, 15]


def test_a_store_without_patience_raises_the_first_error(clock):
    function = Failing(clock, 1)
    with pytest.raises(requests.ConnectionError):
        retried(function)(RetryingStore(None, "http://store", Path("unused")))
    assert function.calls == 1
