"""The seconds of experts by activity, with a clock that the test sets."""

from contextlib import suppress
from types import SimpleNamespace

import pytest

from workers import stopwatch
from workers.stopwatch import ACTIVITIES, Stopwatch, activity_timer, current_stopwatch


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def spent(watch, expert):
    return {name: seconds for name, seconds in watch.seconds(expert).items() if seconds}


def test_experts_share_the_time_of_a_block(clock):
    watch = Stopwatch()
    with watch.running():
        with activity_timer("steps", "a", "b"):
            clock.now += 4
        clock.now += 50  # in no block
        with activity_timer("steps", "b"):
            clock.now += 1
    assert (spent(watch, "a"), spent(watch, "b")) == ({"steps": 2.0}, {"steps": 3.0})
    assert tuple(watch.seconds("c")) == ACTIVITIES


def test_an_inner_block_is_not_counted_in_the_outer_one(clock):
    watch = Stopwatch()
    with watch.running(), activity_timer("steps", "a", "b"):
        clock.now += 2
        with suppress(ValueError), activity_timer("trunk"):
            clock.now += 6
            raise ValueError("full")
        clock.now += 2
    assert spent(watch, "a") == spent(watch, "b") == {"steps": 2.0, "trunk": 3.0}


def test_earlier_attempts_are_added_and_nobody_needs_to_measure(clock):
    watch = Stopwatch()
    with watch.running():
        current_stopwatch().add("a", {"steps": 7.0})
        with activity_timer("steps", "a"):
            clock.now += 1
    with activity_timer("steps", "a"):
        clock.now += 10
    assert spent(watch, "a") == {"steps": 8.0}
