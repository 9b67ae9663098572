"""The search of one task: rungs, finalists, and a search that goes on after an interruption. Nothing is trained."""

import copy
import json
import math

import pytest
from test_sampler import Grid, accuracy, key

from orchestrator.registry import RunRecord
from orchestrator.search.finalists import choose_finalists, choose_winner
from orchestrator.search.halving import Halving
from orchestrator.search.pareto import hypervolume, is_dominated, pareto_front
from orchestrator.search.repetitions import SearchSize
from orchestrator.search.sampler import Sampler
from orchestrator.search.search_record import make_task_record
from orchestrator.search.shared_point import find_shared_point
from orchestrator.search.task_search import TaskSearch
from orchestrator.search.trial import RungResult, Trial, read_trial


def trial(number=1, point=None, origin="sampled", seed=0, accuracies=(), state="finished", parameters=None, loss=None):
    point = point or {"rank": 2**number, "factors": "2+2"}
    rungs = [
        RungResult(10 * (i + 1), value, 1 - value if loss is None else loss, 1.0) for i, value in enumerate(accuracies)
    ]
    parameters = 10 * point["rank"] if parameters is None else parameters
    return Trial("trec", number, point, f"{key(point)} {seed}", parameters, origin, seed, rungs=rungs, state=state)


def decisions(halving, accuracies, parameters=None):
    parameters = parameters or [10] * len(accuracies)
    return [
        halving.goes_on(trial(number, parameters=size), RungResult(10, value, 0.0, 1.0))
        for number, (value, size) in enumerate(zip(accuracies, parameters, strict=True))
    ]


def test_of_many_trials_the_best_third_goes_on():
    found = decisions(Halving((10, 30, 90), 3, ["accuracy"]), [0.5, 0.4, 0.6, 0.3, 0.55, 0.7, 0.2, 0.1, 0.8])
    assert found == [True, False, True, False, True, True, False, False, True]


def test_with_parameters_as_an_objective_a_small_trial_goes_on_although_it_is_less_accurate():
    halving = Halving((10, 30), 3, ["accuracy", "parameters"])
    assert decisions(halving, [0.9, 0.5, 0.4, 0.8], [100, 10, 20, 90]) == [True, True, False, True]


SIX = SearchSize(6)


def search(size=SIX, earlier=(), rungs=(90,), seed=0):
    def make(number, point, origin, seed=0):
        return trial(number, point, origin, seed, state="waiting")

    space = Grid()
    sampler = Sampler(space, "tpe", ["accuracy"], seed, 3, lambda point: f"{key(point)} 0")
    return TaskSearch("trec", sampler, Halving(rungs, 3, ["accuracy"]), size, make, earlier)


def run(found, most=1000):
    """Train up to ``most`` rungs, one after another; return each as (number, steps)."""
    trained = []
    while len(trained) < most and (each := found.next()):
        steps = found.next_rung(each)
        trained.append((each.number, steps))
        value = accuracy(each.point) - 0.1 / steps + 0.001 * each.seed
        found.report(each, RungResult(steps, value, 1 - value, 1.0), ended=steps == 90)
    return trained


def test_each_trial_is_trained_once_to_the_end_without_rungs():
    found = search()
    assert run(found) == [(number, 90) for number in range(1, 7)]
    assert all(each.state == "finished" for each in found.trials)


def test_trials_that_go_on_come_before_new_ones_and_the_others_are_stopped():
    found = search(SearchSize(9), rungs=(10, 30, 90))
    trained = run(found)
    assert len({number for number, _ in trained}) == 9
    assert trained[:3] == [(1, 10), (1, 30), (1, 90)]  # nothing to compare it with
    stopped = [each for each in found.trials if each.state == "stopped"]
    assert stopped
    assert {each.steps for each in stopped} <= {10, 30}
    best = max(found.trials, key=lambda each: accuracy(each.point))
    assert best.state == "finished"


def test_finalists_are_repeated_with_other_seeds_once_all_points_have_results():
    found = search(SearchSize(6, confirm=2, finalists=2, within=0.01))
    run(found)
    repeated = [each for each in found.trials if each.origin == "confirming"]
    assert {each.number for each in repeated} == set(range(7, 7 + len(repeated)))
    assert {each.seed for each in repeated} == {1, 2}
    finalists = choose_finalists(found.trials[:6], 2, 0.01)
    assert len(repeated) == 2 * len(finalists)
    assert {each.point_key for each in repeated} == {each.trials[0].point_key for each in finalists}


@pytest.mark.parametrize("size", [SearchSize(6, confirm=2), SearchSize(9)])
@pytest.mark.parametrize("rungs", [(90,), (10, 30, 90)])
@pytest.mark.parametrize("killed_after", [1, 4, 7])
def test_a_search_that_is_killed_trains_the_rest_and_the_same_points(size, rungs, killed_after):
    whole = search(size, rungs=rungs)
    trained = run(whole)
    first = search(size, rungs=rungs)
    run(first, most=killed_after)
    interrupted = first.next()  # recorded as running, without a result
    again = search(size, [copy.deepcopy(each) for each in first.trials], rungs)
    assert len(run(again)) == len(trained) - killed_after
    assert [(each.point, each.seed, each.steps, each.state) for each in again.trials] == [
        (each.point, each.seed, each.steps, each.state) for each in whole.trials
    ]
    assert interrupted is None or interrupted.number <= len(again.trials)


def test_a_failed_trial_is_not_suggested_again_and_stops_nothing():
    found = search()
    found.fail(first := found.next(), "ValueError: no")
    assert len(run(found)) == 5
    assert [each.spec_hash for each in found.trials].count(first.spec_hash) == 1
    assert not first.is_measured


def test_a_search_that_is_stopped_starts_nothing():
    found = search()
    run(found, most=2)
    found.stop()
    assert found.next() is None


def test_the_winner_is_the_smallest_point_near_the_best_mean_of_those_with_several_seeds():
    lucky = trial(2, accuracies=[0.93])
    two, eight = ({"rank": rank, "factors": "2+2"} for rank in (2, 8))
    small = [trial(2, two, seed=seed, accuracies=[0.899 + seed / 1000], loss=0.3) for seed in range(3)]
    large = [trial(3, eight, seed=seed, accuracies=[0.903], loss=0.3) for seed in range(3)]
    found = choose_winner([lucky, *small, *large], 0.005)
    assert (found.trials, found.accuracy) == (tuple(small), pytest.approx(0.9))
    assert found.spread == pytest.approx(0.001)
    assert choose_winner([lucky, *small, *large], 0.001).trials == tuple(large)
    assert choose_winner([trial(state="stopped", accuracies=[0.9])], 0.1) is None


def test_of_points_of_one_accuracy_a_larger_one_wins_if_its_loss_is_lower_by_more_than_a_standard_error():
    losses = {2: [0.30, 0.32, 0.34], 4: [0.255, 0.265, 0.275], 8: [0.25, 0.26, 0.27]}
    found = [
        trial(rank, {"rank": rank, "factors": "2+2"}, seed=seed, accuracies=[0.9], loss=loss)
        for rank, of_rank in losses.items()
        for seed, loss in enumerate(of_rank)
    ]
    assert choose_winner(found, 0.005).loss == pytest.approx(0.265)  # the lowest, 0.26, has an error of 0.0058
    assert choose_winner(found[:-3], 0.005).loss == pytest.approx(0.265)
    single = [each for each in found if each.seed == 0]
    assert choose_winner(single, 0.005).trials[0].point["rank"] == 2  # no spread is known, so accuracy alone decides


def test_a_point_of_lower_loss_is_a_finalist_beside_a_smaller_one_of_the_same_accuracy():
    small, large = (
        trial(rank, {"rank": rank, "factors": "2+2"}, accuracies=[0.9], loss=loss)
        for rank, loss in ((2, 0.3), (8, 0.2))
    )
    worse = trial(16, {"rank": 16, "factors": "2+2"}, accuracies=[0.9], loss=0.2)
    assert [each.trials[0] for each in choose_finalists([small, large, worse], 4, 0.005)] == [small, large]


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_loss_that_is_no_finite_number_does_not_win(lost):
    small, large = (
        [trial(rank, {"rank": rank, "factors": "2+2"}, seed=seed, accuracies=[0.9], loss=loss) for seed, loss in losses]
        for rank, losses in ((2, [(0, 0.1), (1, lost)]), (8, [(0, 0.5), (1, 0.6)]))
    )
    assert choose_winner([*small, *large], 0.005).trials == tuple(large)
    assert choose_winner(small, 0.005).trials == tuple(small)  # where there is no other
    assert len(choose_finalists([small[1], large[0]], 4, 0.005)) == 2  # it has fewer parameters


def test_the_point_for_all_tasks_is_chosen_as_those_of_each_task():
    """A point of one seed has no standard error: beside repeated ones it is not compared."""
    of_task = [
        *(
            trial(4, {"rank": 4, "factors": "2+2"}, seed=seed, accuracies=[0.9], loss=0.3 + seed / 100)
            for seed in (0, 1)
        ),
        *(
            trial(8, {"rank": 8, "factors": "2+2"}, seed=seed, accuracies=[0.9], loss=0.2 + seed / 100)
            for seed in (0, 1)
        ),
        trial(2, {"rank": 2, "factors": "2+2"}, accuracies=[0.9], loss=0.1),
    ]
    assert choose_winner(of_task, 0.005).trials[0].point["rank"] == 8
    assert find_shared_point({"a": of_task, "b": of_task}, 0.005)["point"]["rank"] == 8


def test_a_finalist_with_a_seed_less_than_the_others_is_compared_too():
    """As after a budget that ended the repetitions."""
    small = [trial(2, {"rank": 2, "factors": "2+2"}, seed=seed, accuracies=[0.9]) for seed in range(2)]
    large = [trial(3, {"rank": 8, "factors": "2+2"}, seed=seed, accuracies=[0.9]) for seed in range(3)]
    assert choose_winner([*small, *large], 0.005).trials == tuple(small)


def test_the_front_and_its_hypervolume():
    values = [{"accuracy": a, "parameters": p, "spec_hash": str(i)}
              for i, (a, p) in enumerate([(0.9, 1000), (0.8, 100), (0.7, 200), (0.8, 100)])]  # fmt: skip
    assert [each["spec_hash"] for each in pareto_front(values)] == ["0", "1", "3"]
    assert not is_dominated(values[0], values)
    assert hypervolume(values, 10_000) == pytest.approx(0.8 * 2 + 0.1 * 1)
    assert hypervolume(values, 10_000, 0.75) == pytest.approx(0.05 * 2 + 0.1 * 1)
    assert hypervolume(values, 1000) == pytest.approx(0.8)
    assert hypervolume([], 1000) == 0


def record_of(each, **changes):
    tags = {"task": each.task, "spec_hash": each.spec_hash} | each.first_tags() | each.tags()
    fields = dict.fromkeys(("name", "status", "began", "ended", "metrics", "steps", "last_metric_time"))
    return RunRecord(run_id="r1", tags=tags | changes, params={}, **fields)


def test_a_trial_is_read_from_its_run_as_it_was():
    before = trial(3, origin="confirming", seed=2, accuracies=[0.5, 0.6], state="stopped")
    before.error, before.description = "OSError: disk", {"rank": 2}
    found = read_trial(record_of(before))
    assert found == Trial(**vars(before) | {"run_id": "r1"})
    assert json.loads(found.tags()["rungs"])[-1][1] == 0.6


@pytest.mark.parametrize("changes", [
    {"rungs": "{"}, {"rungs": "[[1, 2]]"}, {"rungs": '[[10, "a", 0, 0]]'}, {"number": "x"}, {"point": "[]"},
    {"rungs": f"[[10, {math.nan}, 0, 0]]".replace("nan", "NaN")},
])  # fmt: skip
def test_a_run_that_is_not_readable_is_no_trial(changes):
    assert read_trial(record_of(trial(accuracies=[0.5]), **changes)) is None


def test_the_front_has_the_mean_over_seeds_of_a_point_and_no_lora_adapter():
    small = [trial(1, {"rank": 2, "factors": "2+2"}, seed=seed, accuracies=[0.9 + seed / 100]) for seed in range(3)]
    large = trial(4, {"rank": 4, "factors": "2+2"}, accuracies=[0.915])
    lucky = trial(5, {"rank": 8, "factors": "2+2"}, accuracies=[0.5, 0.912], state="stopped")
    lora = trial(6, {"lora": 1, "rank": 1, "factors": "LoRA"}, origin="reference", accuracies=[0.99])
    record = make_task_record("trec", [*small, large, lucky, lora], 0.005, None, {}, 1000, lambda point: {})
    front = [(each["point"]["rank"], each["seeds"], each["accuracy"]) for each in record.front]
    assert front == [(2, 3, pytest.approx(0.91)), (4, 1, 0.915)]
    assert record.references == [{"name": "LoRA-1", "parameters": 10, "accuracy": 0.99}]
    assert len(record.trials) == 5
