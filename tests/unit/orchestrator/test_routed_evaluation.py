"""The routed model's test, put together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.report.routed_evaluation import summarize_routing
from orchestrator.report.twins import find_twins, join_groups
from workers.routing.routed_accuracy import RoutedAccuracy
from workers.routing.router_job import RouterResult

MEASURED = {"test.routing_accuracy": 0.1, "parameters": 7.0}
RESULT = RouterResult(("a", "b"), MEASURED, [[10, 0], [0, 90]], "hash", "folder")
RESULT_OF_THREE = RouterResult(("a", "b", "c"), MEASURED, [], "hash", "folder")
DEPTHS = [{"depth": 0, "routing_accuracy": 0.5}]


def test_tasks_count_alike_in_accuracies_and_rows_in_routing() -> None:
    tests = {
        "a": RoutedAccuracy("a", 10, 9, 8, 7, 1, {"a": 9, "b": 1}, {"b": 1}, (0.0, 3.0)),
        "b": RoutedAccuracy("b", 90, 85, 45, 45, 0, {"a": 5, "b": 85}, {"a": 2}, (1.0, -5.0)),
    }
    found = summarize_routing(RESULT, tests, {"a": 0.9, "b": 0.6, "unused": 0.0}, DEPTHS)
    metrics = found["metrics"]
    assert metrics["test.routing_accuracy"] == found["routing_accuracy"] == pytest.approx(94 / 100)
    assert metrics["test.routed_accuracy"] == pytest.approx((8 / 10 + 45 / 90) / 2)
    assert metrics["test.alone_accuracy"] == pytest.approx(0.75)
    assert metrics["test.harmless_share"] == pytest.approx(3 / 6)
    assert metrics["test.known_accuracy"] == pytest.approx((7 / 10 + 45 / 90) / 2)
    assert metrics["test.calibration_error"] == pytest.approx((1 + 2) / 100)
    assert metrics["test.unknown"] == pytest.approx(1 / 100)
    assert "test.group_accuracy" not in metrics
    assert metrics["parameters"] == 7.0  # what the router's own job measured stays
    assert RESULT.metrics["test.routing_accuracy"] == 0.1
    assert found["tasks"]["a"] == {
        "task": "a", "rows": 10, "routed_right": 9, "answered_right": 8, "known_right": 7, "unknown": 1,
        "routed": {"a": 9, "b": 1}, "harmless": {"b": 1}, "overconfidence": (0.0, 3.0), "right_rows": (),
        "alone_right": None, "labelled": True, "alone": 0.9, "right_in_group": 8}  # fmt: skip
    assert (found["confusion"], found["confusion_tasks"], found["depths"]) == ([[9, 1], [5, 85]], ["a", "b"], DEPTHS)


def test_rows_without_labels_count_in_routing_alone() -> None:
    unlabelled = RoutedAccuracy("b", 90, 45, 0, 0, 9, {"a": 45, "b": 45}, labelled=False)
    found = summarize_routing(RESULT, {"a": RoutedAccuracy("a", 10, 9, 8, 7), "b": unlabelled}, {"a": 0.9, "b": None},
                              DEPTHS, [["a", "b"]])["metrics"]  # fmt: skip
    assert found["test.routing_accuracy"] == pytest.approx(54 / 100)
    assert found["test.unknown"] == pytest.approx(9 / 100)
    means = ("test.routed_accuracy", "test.known_accuracy", "test.alone_accuracy", "test.group_accuracy")
    assert [found[name] for name in means] == pytest.approx([0.8, 0.7, 0.9, 0.8])
    alone = {"a": None, "b": None}
    none = summarize_routing(RESULT, {"a": replace(unlabelled, task="a"), "b": unlabelled}, alone, [], [["a", "b"]])
    assert not none["metrics"].keys() & {*means, "test.harmless_share"}
    assert none["metrics"]["test.routing_accuracy"] == pytest.approx(0.5)


def test_where_every_row_met_its_expert_nothing_was_harmless() -> None:
    found = summarize_routing(RESULT, {"a": RoutedAccuracy("a", 10, 10, 10), "b": RoutedAccuracy("b", 1, 1, 1)},
                              {"a": 1.0, "b": 1.0}, [])  # fmt: skip
    assert found["metrics"]["test.harmless_share"] == 0
    assert found["routing_accuracy"] == 1


def test_within_a_group_or_among_twins_any_right_answer_counts() -> None:
    tests = {
        "a": RoutedAccuracy("a", 10, 6, 5, 5, harmless={"b": 3, "c": 1}),
        "b": RoutedAccuracy("b", 10, 8, 8, 8, harmless={"a": 1}),
        "c": RoutedAccuracy("c", 10, 9, 9, 9, harmless={"a": 1}),
    }
    alone = dict.fromkeys(tests, 1.0)
    for groups, twins in (([("a", "b")], []), ([], [["a", "b"]])):
        found = summarize_routing(RESULT_OF_THREE, tests, alone, [], groups, twins)
        assert {task: test["right_in_group"] for task, test in found["tasks"].items()} == {"a": 8, "b": 9, "c": 9}
        assert found["metrics"]["test.group_accuracy"] == pytest.approx(26 / 30)
        assert found["metrics"]["test.routed_accuracy"] == pytest.approx(22 / 30)
        assert (found["groups"], found["twins"]) == ([["a", "b"]], twins)
    both = summarize_routing(RESULT_OF_THREE, tests, alone, [], [("a", "b", "failed")], [["b", "c"]])
    assert {task: test["right_in_group"] for task, test in both["tasks"].items()} == {"a": 9, "b": 9, "c": 10}
    assert (both["groups"], both["twins"]) == ([["a", "b", "c"]], [["b", "c"]])


def test_units_may_end_in_any_order() -> None:
    tests = {task: RoutedAccuracy(task, 10, 10, 10, routed={task: 10}) for task in ("c", "a", "b")}
    found = summarize_routing(RESULT_OF_THREE, tests, dict.fromkeys("abc", 1.0), [])
    assert list(found["tasks"]) == found["confusion_tasks"] == ["a", "b", "c"]
    assert found["confusion"] == [[10, 0, 0], [0, 10, 0], [0, 0, 10]]


def test_twins_are_confused_and_have_a_label_name_in_common() -> None:
    labels = {"a": ("yes", "no"), "b": ("no", "yes"), "c": ("yes", "maybe"), "d": (), "e": ("other",)}
    confusion = [
        [80, 20, 0, 0, 0],
        [0, 100, 0, 0, 0],
        [0, 5, 95, 0, 0],  # of a twin of a
        [0, 50, 0, 50, 0],  # has no labels
        [50, 0, 0, 0, 50],  # has none in common
    ]
    assert find_twins(list(labels), confusion, labels) == [["a", "b", "c"]]
    confusion[2] = [0, 4, 96, 0, 0]
    assert find_twins(list(labels), confusion, labels) == [["a", "b"]]
    confusion[0] = [96, 4, 0, 0, 0]
    assert find_twins(list(labels), confusion, labels) == []
    assert find_twins(["a"], [[0]], labels) == []
    assert find_twins(["a", "b"], [[10, 4], [0, 10]], labels) == []  # few rows
    assert find_twins(["a", "b"], [[10, 5], [0, 10]], {"a": ("0", "1"), "b": ("0", "1")}) == []  # numbers are no names


def test_groups_with_a_common_task_become_one() -> None:
    tasks = ["a", "b", "c", "d", "e"]
    assert join_groups(tasks, [["e", "d"], ["a", "b"], ["c", "b"], ["failed", "c"]]) == [["a", "b", "c"], ["d", "e"]]
    assert join_groups(tasks, [["a", "failed"], []]) == []
