"""The routed model's test, put together."""

from __future__ import annotations

import pytest

from orchestrator.report.routed_evaluation import summarize_routing
from workers.routing.routed_accuracy import RoutedAccuracy
from workers.routing.router_job import RouterResult

MEASURED = {"test.routing_accuracy": 0.1, "parameters": 7.0}
RESULT = RouterResult(("a", "b"), MEASURED, [[9, 1], [5, 85]], "hash", "folder")
DEPTHS = [{"depth": 0, "routing_accuracy": 0.5}]


def test_tasks_count_alike_in_accuracies_and_rows_in_routing() -> None:
    tests = {"a": RoutedAccuracy("a", 10, 9, 8, 1), "b": RoutedAccuracy("b", 90, 85, 45, 2)}
    found = summarize_routing(RESULT, tests, {"a": 0.9, "b": 0.6, "unused": 0.0}, DEPTHS)
    metrics = found["metrics"]
    assert metrics["test.routing_accuracy"] == found["routing_accuracy"] == pytest.approx(94 / 100)
    assert metrics["test.routed_accuracy"] == pytest.approx((8 / 10 + 45 / 90) / 2)
    assert metrics["test.alone_accuracy"] == pytest.approx(0.75)
    assert metrics["test.harmless_share"] == pytest.approx(3 / 6)
    assert metrics["parameters"] == 7.0  # what the router's own job measured stays
    assert RESULT.metrics["test.routing_accuracy"] == 0.1
    assert found["tasks"]["a"] == {
        "task": "a", "rows": 10, "routed_right": 9, "answered_right": 8, "harmless": 1, "right_rows": (),
        "alone": 0.9}  # fmt: skip
    assert (found["confusion"], found["confusion_tasks"], found["depths"]) == (RESULT.confusion, ["a", "b"], DEPTHS)


def test_where_every_row_met_its_expert_nothing_was_harmless() -> None:
    found = summarize_routing(RESULT, {"a": RoutedAccuracy("a", 10, 10, 10)}, {"a": 1.0}, [])
    assert found["metrics"]["test.harmless_share"] == 0
    assert found["routing_accuracy"] == 1
