"""A training that is asked to stop, or gets SIGTERM, saves a checkpoint after its present step, and ends."""

from __future__ import annotations

import os
import signal

import pytest

from workers.stopping import StoppedError, deferred_sigterm, raise_if_stopped, stopped_by


class Terminated(BaseException):
    pass


@pytest.fixture
def terminated(monkeypatch):
    """SIGTERM raises Terminated."""

    def answer(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, answer)
    yield
    signal.signal(signal.SIGTERM, before)


def steps_until_stopped(ask=lambda: False, send_at=None):
    """Return the steps that were taken whole, and those at which a checkpoint was saved."""
    whole, saved = [], []
    try:
        with stopped_by(ask), deferred_sigterm():
            for step in range(10):
                raise_if_stopped(lambda: saved.append(len(whole)))
                if step == send_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                whole.append(step)
    except (StoppedError, Terminated) as error:
        return whole, saved, type(error)
    return whole, saved, None


def test_without_a_request_nothing_is_saved():
    assert steps_until_stopped() == (list(range(10)), [], None)


def test_a_request_is_answered_between_two_steps():
    answers = iter([False, False, True])
    assert steps_until_stopped(lambda: next(answers)) == ([0, 1], [2], StoppedError)


def test_sigterm_in_the_middle_of_a_step_is_answered_after_it(terminated):
    assert steps_until_stopped(send_at=3) == ([0, 1, 2, 3], [4], Terminated)


def test_sigterm_in_the_last_step_is_answered_too(terminated):
    assert steps_until_stopped(send_at=9) == (list(range(10)), [], Terminated)
    with pytest.raises(Terminated):  # the handler is the one from before
        os.kill(os.getpid(), signal.SIGTERM)
