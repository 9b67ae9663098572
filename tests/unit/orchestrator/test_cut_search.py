"""The search of one task by cutting: what is trained after the parent, and what an interruption changes."""

import copy
from dataclasses import replace

import pytest
from library_plan import plan_of

from orchestrator.plan.rank_space import rank_space
from orchestrator.plan.search_space import check_spaces
from orchestrator.search.cut_search import CutSearch, promising_ranks
from orchestrator.search.finalists import choose_winner
from orchestrator.search.repetitions import SearchSize
from orchestrator.search.search_record import make_task_record
from orchestrator.search.shared_point import find_shared_point
from orchestrator.search.trial import RungResult, Trial
from orchestrator.search.trial_units import TaskTrials, make_cutting_unit
from ttmoe.adapter import count_parameters, plan_groups
from ttmoe.base import empty_body
from ttmoe.errors import InputError
from workers.tuning.members import CuttingResult, Member

RANKS = (4, 16, 8, 2, 1)


def make(number, point, origin, seed=0):
    return Trial("trec", number, point, f"{point['rank']} {origin} {seed}", 10 * point["rank"], origin, seed)


def search(retrain=0, confirm=0, earlier=(), within=0.005):
    return CutSearch("trec", RANKS, 200, SearchSize(retrain, confirm, 4, within), make, earlier)


def member(rank, accuracy, steps=0):
    return Member(rank, {"q": f"4x4|4x4@{rank}"}, 10 * rank, accuracy, 1 - accuracy, False, accuracy, 0.0, steps, 1.0)


def cut(found, accuracies):
    """Train the parent, and cut it: accuracies of rank 16 and of the lower ranks."""
    parent = found.next()
    members = tuple(member(rank, value) for rank, value in zip((8, 4, 2, 1), accuracies[1:], strict=True))
    return found.report_cuts(parent, CuttingResult(member(16, accuracies[0], 200), members, {}))


def train(found, accuracy=lambda trial: 0.9, most=100):
    """Train what is asked for, up to ``most`` trials; return origin, rank and seed of each."""
    trained = []
    while len(trained) < most and (trial := found.next()):
        assert found.next_rung(trial) == 200
        trained.append((trial.origin, trial.point["rank"], trial.seed))
        found.report(trial, RungResult(200, accuracy(trial), 0.1, 1.0), ended=True)
    return trained


def test_one_training_gives_a_trial_of_every_rank():
    found = search()
    cuts = cut(found, [0.95, 0.95, 0.94, 0.93, 0.8])
    assert [(trial.point["rank"], trial.origin, trial.state) for trial in found.trials] == [
        (16, "parent", "finished"), *((rank, "cut", "finished") for rank in (8, 4, 2, 1))]  # fmt: skip
    assert [trial.accuracy for trial in cuts] == [0.95, 0.94, 0.93, 0.8]
    assert train(found) == []
    assert choose_winner(found.trials, 0.005).trials[0].point == {"rank": 8}


def test_nothing_else_is_asked_for_while_the_parent_is_trained():
    found = search(retrain=4, confirm=3)
    assert found.next().origin == "parent"
    assert found.next() is None


def test_cuts_that_fall_or_are_surpassed_by_smaller_ones_are_doubtful_and_trained_if_allowed():
    accuracies = [0.95, 0.95, 0.93, 0.935, 0.80]  # rank 4 is surpassed by rank 2, rank 1 falls
    found = search(retrain=3)
    cut(found, accuracies)
    assert [trial.point["rank"] for trial in found.doubtful()] == [4, 1]
    assert train(found) == [("retrained", 4, 0), ("retrained", 1, 0)]
    few = search(retrain=1)
    cut(few, accuracies)
    assert train(few) == [("retrained", 4, 0)]


def test_a_rank_that_was_trained_counts_with_its_trainings_and_not_with_its_cut():
    found = search(confirm=2)
    cut(found, [0.95, 0.949, 0.90, 0.90, 0.80])
    trained = train(found, lambda trial: 0.94 if trial.point["rank"] == 8 else 0.95)
    assert trained == [("confirming", *each) for each in ((8, 0), (16, 1), (8, 1), (16, 2), (8, 2))]
    winner = choose_winner(found.trials, 0.005)
    assert ([trial.origin for trial in winner.trials], winner.accuracy) == (
        ["parent", "confirming", "confirming"],
        0.95,
    )


@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_a_search_that_is_killed_trains_the_rest(killed_after):
    accuracies = [0.95, 0.95, 0.93, 0.935, 0.80]
    whole = search(retrain=2, confirm=1)
    cut(whole, accuracies)
    trained = train(whole)
    first = search(retrain=2, confirm=1)
    cut(first, accuracies)
    train(first, most=killed_after)
    first.next()  # recorded as running, without a result
    again = search(2, 1, [copy.deepcopy(trial) for trial in first.trials])
    for trial in again.trials:
        trial.state = "waiting" if trial.state == "running" else trial.state
    assert train(again) == trained[killed_after:]
    assert [(trial.point, trial.origin, trial.seed) for trial in again.trials] == [
        (trial.point, trial.origin, trial.seed) for trial in whole.trials]  # fmt: skip


def test_the_promising_ranks_are_those_on_the_front_of_the_cuts():
    found = search(retrain=1)
    cut(found, [0.95, 0.96, 0.93, 0.93, 0.80])
    train(found)  # a training of a rank is no cut
    assert promising_ranks(found.trials) == (8, 2, 1)
    assert promising_ranks([]) == ()


def test_a_parent_whose_cuts_were_not_recorded_is_cut_again():
    first = search()
    cut(first, [0.95, 0.9, 0.9, 0.9, 0.9])
    for recorded in (1, 3):  # the parent alone, and with two of its cuts
        again = search(earlier=copy.deepcopy(first.trials[:recorded]))
        cut(again, [0.95, 0.9, 0.9, 0.9, 0.9])
        assert [(each.number, each.point, each.origin) for each in again.trials] == [
            (each.number, each.point, each.origin) for each in first.trials]  # fmt: skip
        assert train(again) == []


def test_a_parent_that_fails_ends_the_search():
    found = search(retrain=2, confirm=2)
    found.fail(found.next(), "ValueError: no")
    assert found.next() is None


@pytest.fixture
def trials(base_folder, tmp_path):
    settings = {"task": "colours", "method": "truncate", "ranks": [1, 2, 4, 8], "steps": 50}
    plan = plan_of(base_folder, tmp_path, search=settings, adapter={"rank": 4, "alpha": 6})
    space = rank_space(plan, "colours", empty_body(plan.base))
    return TaskTrials(plan, "colours", space, (50,), tmp_path / "trials")


@pytest.mark.parametrize("bound", [2, 4])
def test_a_bound_of_parameters_leaves_out_ranks_but_not_the_parent(trials, bound):
    most = trials.space.settings({"rank": bound}).parameters
    search = trials.plan.config.search.model_copy(update={"max_parameters": most})
    plan = replace(trials.plan, config=trials.plan.config.model_copy(update={"search": search}))
    space = rank_space(plan, "colours", empty_body(plan.base))
    assert space.choices() == {"rank": tuple(rank for rank in (1, 2, 4, 8) if rank <= bound or rank == 8)}
    check_spaces(plan)
    too_few = search.model_copy(update={"max_parameters": 3})
    plan = replace(plan, config=plan.config.model_copy(update={"search": too_few}))
    with pytest.raises(InputError, match="no rank has at most 3 parameters; the lowest has"):
        check_spaces(plan)


def test_ranks_above_the_largest_possible_one_are_that_one(base_folder, tmp_path):
    settings = {"task": "colours", "method": "truncate", "ranks": [1000, 2, 64, 16, 8]}
    plan = plan_of(base_folder, tmp_path, search=settings)
    space = rank_space(plan, "colours", empty_body(plan.base))
    *_, before, largest = space.choices()["rank"]
    sizes = [space.settings({"rank": rank}).parameters for rank in (before, largest)]
    adapter = replace(plan.experts["colours"].job.adapter, method="tt", rank=1000)
    assert largest < 1000
    assert sizes[0] < sizes[1] == count_parameters(plan_groups(empty_body(plan.base), adapter))


def test_a_parent_above_the_bound_is_neither_repeated_nor_recommended():
    size = SearchSize(0, 1, max_parameters=40)
    found = CutSearch("trec", (4, 16, 2), 200, size, make)
    parent = found.next()
    found.report_cuts(parent, CuttingResult(member(16, 0.95, 200), (member(4, 0.94), member(2, 0.9)), {}))
    assert train(found, lambda trial: 0.94) == [("confirming", 4, 0), ("confirming", 4, 1)]
    record = make_task_record("trec", found.trials, 0.005, 40, {}, 1000, lambda point: {"adapter": point})
    assert [point["point"]["rank"] for point in record.front] == [4, 2]
    assert record.winner["sections"] == {"adapter": {"rank": 4}}
    assert len(record.trials) == 5


def test_every_rank_has_the_tasks_adapter_and_a_learning_rate_that_falls_with_it(trials):
    own = trials.plan.experts["colours"].job
    points = {rank: trials.space.settings({"rank": rank}) for rank in (1, 4, 8)}
    assert points[4].adapter == own.adapter
    assert {point.adapter.alpha for point in points.values()} == {6}
    assert points[4].train.lr == own.train.lr
    assert points[1].train.lr == pytest.approx(4**0.75 * own.train.lr, rel=1e-2)
    assert points[1].parameters < points[4].parameters < points[8].parameters
    assert trials.config_sections({"rank": 1})["train"] == {"lr": points[1].train.lr}
    assert "train" not in trials.config_sections({"rank": 4})


def test_the_parents_unit_cuts_to_the_lower_ranks_and_distils_them(trials):
    parent = trials.make(1, {"rank": 8}, "parent")
    unit = make_cutting_unit(trials.job(parent, 50), (4, 2, 1))
    (job,) = unit.jobs.values()
    assert (job.ranks, job.distill_steps) == ((4, 2, 1), 12)
    assert (job.expert.task, job.expert.adapter.rank, job.expert.train.steps) == ("colours 1", 8, 50)


def test_a_cut_and_a_training_of_a_rank_are_different_trials(trials):
    hashes = {trials.make(1, {"rank": 2}, origin, seed).spec_hash
              for origin, seed in [("cut", 0), ("retrained", 0), ("confirming", 1), ("confirming", 2)]}  # fmt: skip
    assert len(hashes) == 4


def library(**tasks):
    """The complete trials of tasks, from the accuracies of the ranks 1, 2 and 4."""
    return {
        task: [
            Trial(task, number, {"rank": rank}, f"{task} {rank}", 10 * rank, state="finished",
                  rungs=[RungResult(10, value, 0.1, 1.0)])
            for number, (rank, value) in enumerate(zip((1, 2, 4), accuracies, strict=True), 1)
        ]
        for task, accuracies in tasks.items()
    }  # fmt: skip


def test_of_points_of_one_mean_position_the_most_accurate_one_is_shared():
    found = find_shared_point(library(a=[0.50, 0.99, 0.40], b=[0.99, 0.80, 0.40]), 0.005)
    assert (found["mean_position"], found["point"]) == (1.5, {"rank": 2})


def test_the_shared_point_has_the_best_mean_position_over_the_tasks():
    tasks = library(a=[0.80, 0.90, 0.902], b=[0.70, 0.75, 0.80], c=[0.60, 0.899, 0.90])
    found = find_shared_point(tasks, 0.005)
    assert (found["point"], found["positions"]) == ({"rank": 2}, {"a": 1, "b": 2, "c": 1})
    assert found["mean_position"] == pytest.approx(4 / 3)
    tasks["b"][1].state = "failed"
    assert find_shared_point(tasks, 0.005)["point"] == {"rank": 4}
    assert find_shared_point({"a": tasks["a"]}, 0.005) is None
    assert find_shared_point({"a": tasks["a"], "b": []}, 0.005) is None


def test_lora_adapters_are_trained_for_comparison_and_are_no_candidates(trials):
    found = CutSearch("trec", RANKS, 200, SearchSize(0, references=(1, 16)), make_any)
    cut(found, [0.95, 0.90, 0.90, 0.90, 0.80])
    assert [trial.point for trial in iter(lambda: trained_one(found), None)] == [{"lora": 1}, {"lora": 16}]
    assert choose_winner(found.trials, 0.005).trials[0].point == {"rank": 16}
    reference = trials.make(1, {"lora": 16}, "reference")
    job = trials.job(reference, 50).expert
    assert (job.adapter.method, job.adapter.rank, job.adapter.alpha) == ("lora", 16, 16.0)
    assert reference.parameters == trials.plan.experts["colours"].lora_parameters
    assert reference.description["factors"] == "LoRA"


def make_any(number, point, origin, seed=0):
    return Trial("trec", number, point, f"{point} {origin} {seed}", 10 * sum(point.values()), origin, seed)


def trained_one(found):
    """Train the next trial, more accurately than any other; return it, or None."""
    if trial := found.next():
        found.report(trial, RungResult(200, 0.99, 0.1, 1.0), ended=True)
    return trial
