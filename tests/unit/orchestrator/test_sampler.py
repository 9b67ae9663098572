"""The samplers of a search: every point once, what they learn, and what an interruption changes."""

import itertools

import pytest

from orchestrator.search.sampler import Sampler
from orchestrator.search.trial import RungResult, Trial

OPTIONS = {"rank": (1, 2, 4, 8), "factors": ("2+2", "2+3", "3+3")}


class Grid:
    """A space of all combinations of the options; a rank of 8 with three factors is not valid if ``bounded``."""

    def __init__(self, bounded=False):
        self.bounded = bounded

    def is_valid(self, point):
        return not (self.bounded and point["rank"] == 8 and "3" in point["factors"])

    def suggest(self, choose, *, only_valid=False):
        rank = choose("rank", OPTIONS["rank"])
        small = only_valid and self.bounded and rank == 8
        return {"rank": rank, "factors": choose("factors", OPTIONS["factors"][:1] if small else OPTIONS["factors"])}

    def points(self):
        every = (dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values()))
        return filter(self.is_valid, every)


def key(point):
    return f"{point['rank']} {point['factors']}"


def accuracy(point):
    return 0.9 - abs(point["rank"] - 4) / 20 - (point["factors"] != "2+3") / 10


def sampler(method="tpe", seed=0, space=None, objectives=("accuracy", "parameters"), first_ranks=()):
    space = space or Grid()
    keys = lambda point: key(point) if space.is_valid(point) else None  # noqa: E731
    return Sampler(space, method, objectives, seed, 3, keys, first_ranks)


def measured(number, point):
    return Trial("trec", number, point, key(point), 10 * point["rank"], state="finished",
                 rungs=[RungResult(10, accuracy(point), 1.0, 1.0)])  # fmt: skip


def sample(found, first=1, count=100):
    """Sample up to ``count`` trials, each of which ends before the next; return their points."""
    points = []
    for number in range(first, first + count):
        if (point := found.suggest(number)) is None:
            break
        found.tell(measured(number, point))
        points.append(point)
    return points


@pytest.mark.parametrize("method", ["tpe", "random", "grid"])
@pytest.mark.parametrize("bounded", [False, True])
def test_every_valid_point_is_suggested_once(method, bounded):
    found = list(map(key, sample(sampler(method, space=Grid(bounded)))))
    assert len(found) == len(set(found)) == (10 if bounded else 12)


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_the_first_trials_have_the_ranks_that_are_given(method):
    given, free = ([each["rank"] for each in sample(sampler(method, first_ranks=ranks))] for ranks in ((8, 2, 5), ()))
    assert sorted(given) == sorted(free)  # all points; 5 is no rank of the space
    assert (given[:2] == [8, 2]) == (method == "tpe")
    assert (given == free) == (method == "random")


def test_points_that_are_asked_for_at_one_time_differ():
    found = sampler()
    assert len({key(found.suggest(number)) for number in range(1, 13)}) == 12
    assert found.suggest(13) is None


def test_a_point_that_is_taken_is_not_suggested():
    found = sampler("grid")
    found.take("1 2+2")
    assert [key(point) for point in sample(found, count=2)] == ["1 2+3", "1 3+3"]


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_a_sampler_that_is_told_the_earlier_trials_goes_on_as_if_it_had_not_been_interrupted(method):
    whole = sample(sampler(method), count=9)
    first = sample(sampler(method), count=5)
    again = sampler(method)
    for number, point in enumerate(first, 1):
        again.take(key(point))
        again.tell(measured(number, point))
    assert first + sample(again, first=6, count=4) == whole
    assert sample(sampler(method, seed=1), count=9) != whole


def test_the_estimator_learns_what_is_good(monkeypatch):
    """On 160 points, it finds better ones than chance in 25 trials."""
    monkeypatch.setitem(OPTIONS, "rank", tuple(range(1, 33)))
    monkeypatch.setitem(OPTIONS, "factors", ("2+2", "2+3", "3+2", "3+3", "4+3"))

    def best(method, seed):
        return max(map(accuracy, sample(sampler(method, seed, objectives=("accuracy",)), count=25)))

    tpe, chance = (sum(best(method, seed) for seed in range(10)) / 10 for method in ("tpe", "random"))
    assert 0.9 - tpe < 0.6 * (0.9 - chance), (tpe, chance)


def test_trials_of_another_space_and_failed_ones_teach_nothing():
    found = sampler()
    found.tell(measured(1, {"rank": 3, "factors": "2+2"}))
    found.tell(Trial("trec", 2, {"rank": 4}, "4", 40))
    failed = measured(3, {"rank": 4, "factors": "2+2"})
    failed.state = "failed"
    found.tell(failed)
    assert not found._study.trials
