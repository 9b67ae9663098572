"""The JSON that commands print: numbers are rounded to what they mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.plan.json_output import round_numbers, to_json


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        ({"accuracy": 0.97654321, "seconds": 12.3456}, {"accuracy": 0.9765, "seconds": 12.3}),
        ({"seconds.job": 1.2678, "seconds.training": 0.04}, {"seconds.job": 1.3, "seconds.training": 0.0}),
        ({"left": 81.26, "metrics": {"test.loss": 2 / 3}}, {"left": 81.3, "metrics": {"test.loss": 0.6667}}),
        ({"bytes": 12345678901, "seconds": None, "fits": True}, {"bytes": 12345678901, "seconds": None, "fits": True}),
        ([1 / 3, (1 / 3, "1/3")], [0.3333, [0.3333, "1/3"]]),
        ({"seconds": {"accuracy": 2 / 3}}, {"seconds": {"accuracy": 0.6667}}),  # a task may have this name
        ({"a": float("nan"), "b": float("inf")}, {"a": None, "b": None}),
    ],
)
def test_numbers_have_the_decimals_of_what_they_mean(value: Any, rounded: Any) -> None:
    assert round_numbers(value) == rounded


def test_settings_are_exact_and_times_are_text() -> None:
    settings = {"train": {"weight_decay": 1e-6, "seconds": 0.123456}}
    assert json.loads(to_json({"trials": [{"point": {"lr": 1e-5}}]}, exact=["point"])) == {
        "trials": [{"point": {"lr": 1e-5}}]
    }
    text = to_json({"spec": settings, "a": 1e-6, "began": datetime(2026, 5, 4, tzinfo=UTC)}, exact=["spec"])
    assert json.loads(text) == {"spec": settings, "a": 0.0, "began": "2026-05-04T00:00:00+00:00"}
