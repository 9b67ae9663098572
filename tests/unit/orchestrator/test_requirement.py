"""The config key ``router.require``."""

from __future__ import annotations

import pytest

from orchestrator.run.requirement import unmet_requirement

TASKS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("require", "registered", "reason"),
    [
        ("all", "abcd", ""),
        ("all", "abc", "the router requires d"),
        (0.5, "ab", ""),
        (0.5, "a", "1 of 4 experts are registered, 2 are required"),
        (0.6, "ab", "2 of 4 experts are registered, 3 are required"),
        (1.0, "abc", "3 of 4 experts are registered, 4 are required"),
        (0.01, "", "no expert is registered"),
        (("a", "c"), "ac", ""),
        (("a", "c"), "abd", "the router requires c"),
    ],
)
def test_it_says_why_a_router_cannot_be_trained(require, registered, reason):
    assert unmet_requirement(require, TASKS, set(registered)) == reason


def test_of_many_missing_tasks_only_five_are_listed():
    tasks = [f"t{i}" for i in range(1000)]
    assert unmet_requirement("all", tasks, tasks[:10]) == "the router requires t10, t11, t12, t13, t14 and 985 more"
