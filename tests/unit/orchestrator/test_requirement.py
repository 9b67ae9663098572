"""When a router may be trained."""

from __future__ import annotations

import pytest

from orchestrator.run.requirement import unmet_requirement

TASKS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("require", "there", "said"),
    [
        ("all", "abcd", ""),
        ("all", "abc", "the router requires d"),
        (0.5, "ab", ""),
        (0.5, "a", "1 of 4 experts are there, 2 are required"),
        (0.6, "ab", "2 of 4 experts are there, 3 are required"),
        (1.0, "abc", "3 of 4 experts are there, 4 are required"),
        (0.01, "", "there is no expert"),
        (("a", "c"), "ac", ""),
        (("a", "c"), "abd", "the router requires c"),
    ],
)
def test_the_rule_holds(require, there, said):
    assert unmet_requirement(require, TASKS, set(there)) == said


def test_many_that_are_missing_are_not_all_listed():
    tasks = [f"t{i}" for i in range(1000)]
    assert unmet_requirement("all", tasks, tasks[:10]) == "the router requires t10, t11, t12, t13, t14 and 985 more"
