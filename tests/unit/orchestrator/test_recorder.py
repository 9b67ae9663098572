"""Entries into the registry: in order, none lost, whatever the store does."""

from __future__ import annotations

import threading
import time

import pytest

import orchestrator.recording.recorder
from orchestrator.recording.recorder import Recorder


class Away(Exception):
    """The store does not answer."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(orchestrator.recording.recorder, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(orchestrator.recording.recorder, "_LONGEST_WAIT", 0.02)


def recorder(patience=30.0):
    return Recorder(lambda error: isinstance(error, Away), patience)


def test_deeds_are_done_in_order_in_another_thread():
    seen = []
    with recorder() as found:
        for i in range(100):
            found.add(str(i), lambda i=i: seen.append((i, threading.current_thread().name)) or i)
    assert seen == [(i, "recorder") for i in range(100)]
    assert [(done.key, done.value) for done in found.done()] == [(str(i), i) for i in range(100)]
    assert found.waiting == 0


def test_an_error_is_its_deeds_own():
    def wrong():
        raise ValueError("no")

    with recorder() as found:
        found.add("a", wrong)
        found.add("b", lambda: 2)
    a, b = found.done()
    assert isinstance(a.error, ValueError)
    assert (b.value, b.error) == (2, None)


def test_a_store_that_comes_back_gets_all_in_order():
    calls, written = [], []

    def entry(i):
        def deed():
            calls.append(i)
            if len(calls) < 5:
                raise Away("gone")
            written.append(i)

        return deed

    with recorder() as found:
        for i in range(3):
            found.add(str(i), entry(i))
    assert written == [0, 1, 2]
    assert calls == [0, 0, 0, 0, 0, 1, 2]
    assert found.away_since is None
    assert all(done.error is None for done in found.done())


def test_while_the_store_is_away_the_driver_knows_and_goes_on():
    back = threading.Event()

    def deed():
        if not back.is_set():
            raise Away("gone")

    with recorder() as found:
        found.add("a", deed)
        found.add("b", lambda: None)
        end = time.monotonic() + 10
        while found.away_since is None:
            assert time.monotonic() < end
        assert (found.waiting, found.done()) == (2, [])
        back.set()
    assert len(found.done()) == 2


def test_patience_ends_and_then_nothing_more_is_tried():
    tried = []

    def gone():
        tried.append(1)
        raise Away("gone")

    with recorder(patience=0.1) as found:
        found.add("a", gone)
        found.add("b", lambda: tried.append("never"))
    assert isinstance(found.given_up, Away)
    assert [type(done.error) for done in found.done()] == [Away, Away]
    assert "never" not in tried


def stopped(keys_and_deeds, until, patience=600):
    """A recorder that was left by Ctrl-C."""
    try:
        with recorder(patience) as found:
            for key, deed in keys_and_deeds:
                found.add(key, deed)
            while not until(found):
                time.sleep(0.01)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return


def test_an_interruption_does_not_wait_for_a_store_that_is_away():
    def gone():
        raise Away("gone")

    began = time.monotonic()
    stopped([("a", gone)], lambda found: found.away_since is not None)
    assert time.monotonic() - began < 10


def test_an_interruption_waits_for_a_store_that_answers():
    written = []
    deeds = [(str(i), lambda i=i: (time.sleep(0.01), written.append(i))) for i in range(20)]
    stopped(deeds, lambda found: True)
    assert written == list(range(20))
