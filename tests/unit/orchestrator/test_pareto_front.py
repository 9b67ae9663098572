import random

import pytest

from orchestrator.search.pareto import pareto_front


def trials(*pairs):
    return [{"accuracy": a, "parameters": p, "spec_hash": str(i)} for i, (a, p) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(0.9, 100)], [(0.9, 100)]),
        ([(0.9, 100), (0.8, 50)], [(0.9, 100), (0.8, 50)]),
        ([(0.9, 100), (0.9, 50)], [(0.9, 50)]),  # as accurate and smaller
        ([(0.9, 100), (0.8, 100)], [(0.9, 100)]),  # as small and more accurate
        ([(0.9, 100), (0.9, 100)], [(0.9, 100), (0.9, 100)]),  # equals do not beat each other
        ([(0.5, 70), (0.7, 60), (0.9, 80), (0.6, 50)], [(0.7, 60), (0.9, 80), (0.6, 50)]),
        ([], []),
    ],
)
def test_the_front(points, front):
    found = pareto_front(trials(*points))
    assert [(trial["accuracy"], trial["parameters"]) for trial in found] == front


def test_a_choice_that_was_tried_twice_stands_in_the_front_once():
    twice = [{"accuracy": 0.9, "parameters": 5, "spec_hash": "same"}] * 2
    assert pareto_front(twice) == twice[:1]


def test_no_trial_beats_one_of_the_front_and_each_other_one_is_beaten():
    draw = random.Random(0)
    points = trials(*((draw.randint(0, 20) / 20, draw.randint(1, 20)) for _ in range(60)))
    front = pareto_front(points)

    def beats(a, b):
        no_worse = a["accuracy"] >= b["accuracy"] and a["parameters"] <= b["parameters"]
        return no_worse and (a["accuracy"], a["parameters"]) != (b["accuracy"], b["parameters"])

    for point in points:
        assert any(beats(other, point) for other in front) != (point in front)
