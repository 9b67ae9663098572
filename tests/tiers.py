"""The tiers of the tests: in which order they run, which tests stay together, and how long each tier took."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

TIERS = ("e2e", "integration", "unit")  # in this order, so that no long test is left at the end for one process alone


class Report(Protocol):
    """What pytest reports of one phase of a test: set-up, call or teardown."""

    nodeid: str
    duration: float


def tier_of(nodeid: str) -> str:
    """Return the tier of a test: its folder."""
    return nodeid.split("/")[1]


def group_of(nodeid: str) -> str:
    """Return the group of tests that run in one process, because they share what a fixture made.

    Groups are files, but all of e2e is one group: its tests follow each other on one library.
    """
    if tier_of(nodeid) == "e2e":
        return "e2e"
    return nodeid.partition("::")[0]


def time_lines(reports: Iterable[Report]) -> list[str]:
    """Return a line for each tier that ran: its number of tests, and their seconds in all processes together."""
    seconds: dict[str, float] = dict.fromkeys(TIERS, 0.0)
    tests: dict[str, set[str]] = {tier: set() for tier in TIERS}
    for report in reports:
        tier = tier_of(report.nodeid)
        seconds[tier] += report.duration
        tests[tier].add(report.nodeid)
    return [f"{tier:12}{len(tests[tier]):6} tests {seconds[tier]:6.0f} s" for tier in reversed(TIERS) if tests[tier]]
