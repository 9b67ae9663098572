"""The routed model on test rows: which answers are right, and the comparison of depths."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import load_body
from ttmoe.encoding import Choice, Completion
from ttmoe.expert_files import save_expert
from ttmoe.features import FeatureSpec
from ttmoe.prediction import Prediction
from ttmoe.routed import RoutedModel
from workers.cache.feature_store import compute_features
from workers.data.examples import Example
from workers.data.prepared import load_split
from workers.routing import depths, routed_accuracy
from workers.routing.depths import choose_depths, compare_depths
from workers.routing.routed_accuracy import RoutedAccuracy, answer_test_split, calibration_error
from workers.routing.router_job import RouterJob, run_router
from workers.training.batches import to_input
from workers.training.settings import RouterSettings


def nothing(progress):
    pass


@pytest.fixture
def answered(monkeypatch, base, tmp_path):
    """Gives the test of a task whose rows are answered as the test says."""

    def run(data, examples, answers, groups=()):
        found, asked = iter(answers), []

        def predict(inputs, batch_size, *, unknown):
            assert not unknown
            asked.extend(inputs)
            given = [next(found) for _ in inputs]
            return [Prediction(*each[:2], 0.5, ROUTING, familiar=all(each[2:])) for each in given]

        monkeypatch.setattr(routed_accuracy, "load_split", lambda data, split: {"test": examples}[split])
        model = SimpleNamespace(predict=predict, router=SimpleNamespace(groups=groups))
        monkeypatch.setattr(RoutedModel, "load", lambda *_: model)
        (tmp_path / "router.json").write_text("{}")
        routed_accuracy.load_routed_model.cache_clear()
        reports = []
        result = answer_test_split(tmp_path, base, data, threads=1, device="cpu", report=reports.append)
        assert asked == [to_input(example) for example in examples]
        assert reports[-1].step == reports[-1].steps == len(examples)
        return result

    return run


ROUTING = 0.5  # the probability of every route below


def result(task, rows, routed_right, answered_right, **others):
    """The counts of a test in which nothing is unknown; a bin sums 0.5 a row, less one where it met its expert."""
    sums = [0.0] * 15
    sums[7] = rows * ROUTING - routed_right
    counts = {"known_right": answered_right, "overconfidence": tuple(sums), **others}
    return RoutedAccuracy(task, rows, routed_right, answered_right, **counts)


def test_another_experts_right_label_is_harmless_and_no_right_answer(answered, colours):
    examples = [Example((f"text {i}",), (), i % 3, "") for i in range(6)]  # blue, green, red, ...
    answers = [("colours", "blue"), ("colours", "red"), ("other", "red"), ("other", "blue"), ("colours", "green"),
               ("other", "blue")]  # fmt: skip
    assert answered(colours, examples, answers) == result(
        "colours", 6, 3, 2, routed={"colours": 3, "other": 3}, harmless={"other": 2}, right_rows=(0, 4)
    )


def test_what_predict_calls_unknown_is_counted_beside(answered, colours):
    examples = [Example((f"text {i}",), (), 0, "") for i in range(4)]
    answers = [("colours", "blue"), ("colours", "blue", False), ("colours", "red", False), ("other", "blue", False)]
    found = answered(colours, examples, answers)
    assert (found.answered_right, found.known_right, found.unknown) == (2, 1, 3)
    assert sum(found.overconfidence) == 4 * ROUTING - 3
    within = answered(colours, examples, answers, [("other", "colours")])
    assert (within.answered_right, within.known_right, within.unknown) == (2, 1, 3)
    answers = [("other", "blue"), ("other", "red"), ("colours", "blue"), ("another", "blue")]
    mixed = answered(colours, examples, answers, [("other", "colours")])
    assert (mixed.routed_right, mixed.answered_right, mixed.known_right) == (1, 1, 2)  # one by another of the group
    assert (within.routed_right, sum(within.overconfidence)) == (3, 4 * ROUTING - 4)  # probability of the group
    assert (found.right_in(()), found.right_in(("colours", "other")), found.right_in(("another",))) == (2, 3, 2)


def test_rows_beyond_a_batch_count_too(answered, colours):
    examples = [Example((f"text {i}",), (), 0, "") for i in range(600)]
    answers = [("colours", "blue")] * 500 + [("other", "blue")] * 100
    assert answered(colours, examples, answers) == result(
        "colours",
        600,
        500,
        500,
        routed={"colours": 500, "other": 100},
        harmless={"other": 100},
        right_rows=tuple(range(50)),
    )


def test_of_a_choice_the_options_number_and_of_a_text_its_words_are_right(answered, colours):
    choice = replace(colours, name="which", kind="choice", label_names=("0", "1", "2"))
    examples = [Example(("which?",), ("a", "b", "c"), i, "") for i in range(3)]
    assert to_input(examples[0]) == Choice("which?", ("a", "b", "c"))
    answers = [("which", "0"), ("which", "2"), ("other", "2")]
    assert answered(choice, examples, answers) == result(
        "which", 3, 2, 1, routed={"which": 2, "other": 1}, harmless={"other": 1}, right_rows=(0,)
    )
    writing = replace(colours, name="reply", kind="generate", label_names=())
    examples = [Example(("ask",), (), 0, "", "cat dog"), Example(("ask",), (), 0, "", "dog")]
    assert to_input(examples[0]) == Completion("ask", "cat dog")
    assert answered(writing, examples, [("reply", "cat dog"), ("reply", "cat")]) == result(
        "reply", 2, 2, 1, routed={"reply": 2}, right_rows=(0,)
    )


@pytest.mark.parametrize(("layers", "trunk"), [(2, 1), (6, 3), (6, 0), (12, 5), (30, 20), (1, 0)])
def test_the_depths_that_are_compared(layers, trunk):
    found = choose_depths(layers, trunk)
    assert {0, trunk, layers} <= set(found)
    assert found == sorted(set(found))
    assert len(found) <= depths.COMPARED_DEPTHS + 1
    assert max(b - a for a, b in pairwise(found)) <= -(-layers // 4)


@pytest.fixture(scope="module")
def library(base, colours, animals, tmp_path_factory):
    """A router that was made from features, and experts above layer 1 that answer at random: job and folder."""
    folder, data = tmp_path_factory.mktemp("routed"), {"colours": colours, "animals": animals}
    bank = Bank(load_body(base), base.pooling)
    for i, (task, each) in enumerate(data.items()):
        classes = len(each.label_names)
        expert = bank.add(task, AdapterSpec(rank=2, first_layer=1), classes, torch.Generator().manual_seed(i),
                          random_head=True)  # fmt: skip
        save_expert(expert, folder / "model" / "experts" / task, task=task, kind="classify", labels=each.label_names,
                    base=base.record(), spec_hash=f"{task}-hash", metrics={})  # fmt: skip
    files = {task: str(compute_features(base, each, 100, folder / "cache", threads=1, device="cpu", report=nothing))
             for task, each in data.items()}  # fmt: skip
    lock = {task: f"{task}-hash" for task in data}
    settings = RouterSettings(kind="centroid", rows_per_task=100)
    job = RouterJob(base, FeatureSpec("all"), data, files, lock, settings, 0, "ef", str(folder / "model"))
    return job, run_router(job, threads=1, report=nothing)


def test_the_routed_model_routes_as_the_routers_own_test_said(library):
    job, result = library
    tests = []
    for place, (task, data) in enumerate(job.data.items()):
        test = answer_test_split(Path(job.folder), job.base, data, threads=1, device="cpu", report=nothing)
        assert (test.task, test.rows) == (task, len(load_split(data, "test")))
        assert test.routed_right == test.routed[task] >= result.confusion[place][place] - 5
        assert test.routed_right > 0.95 * test.rows
        assert 0 < test.answered_right < test.routed_right  # an expert at random is right now and then
        tests.append(test)
    assert 0 <= calibration_error(tests) < 0.1


def test_routers_are_compared_on_a_part_of_the_rows(library, monkeypatch):
    job, _ = library
    taken, load = [], RouterJob.load
    monkeypatch.setattr(depths, "COMPARISON_ROWS", 10)
    monkeypatch.setattr(RouterJob, "load", lambda job, *args: taken.append(job.settings.most_rows) or load(job, *args))
    compare_depths(job, Path(job.folder), 1, threads=1, device="cpu", report=nothing)
    assert set(taken) == {10}


def test_less_of_the_base_is_compared_on_the_same_rows(library):
    job, result = library
    before = {path: path.read_bytes() for path in Path(job.folder).rglob("*") if path.is_file()}
    reports = []
    found = compare_depths(job, Path(job.folder), 1, threads=1, device="cpu", report=reports.append)
    assert [(depth.depth, depth.one_pass) for depth in found] == [(0, True), (1, True), (2, False)]
    assert found[-1].validation_accuracy == pytest.approx(result.metrics["validation.routing_accuracy"], abs=1e-6)
    assert all(depth.validation_accuracy > 0.9 for depth in found)
    assert all(depth.seconds_of_one > 0 and depth.seconds_of_batch > 0 for depth in found)
    assert (reports[-1].step, reports[-1].steps) == (3, 3)
    assert {path: path.read_bytes() for path in Path(job.folder).rglob("*") if path.is_file()} == before
