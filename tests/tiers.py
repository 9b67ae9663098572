"""The tiers of the tests: in which order they run, in how many processes, which stay together, and their times."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

TIERS = (
    "cluster",
    "e2e",
    "integration",
    "unit",
)  # in this order, so no long test is left at the end for one process

# Files of the integration tier that take a minute or nearly: first, so that none is left at the end for one process.
LONG = ("test_run", "test_gpu_cluster", "test_reliability", "test_registry", "test_tracking_unavailable",
        "test_predict", "test_run_faults", "test_worker_faults", "test_worker_pool",
        "test_generate", "test_doctor", "test_driver_killed", "test_tune",
        "test_two_hosts")  # fmt: skip

# Groups of several files: e2e follows one library from test to test, and SmolLM2 is downloaded once.
TOGETHER = {"tests/e2e/test_quickstart.py": "e2e", "tests/e2e/test_readme.py": "e2e",
            "tests/e2e/test_readme_answers.py": "e2e",
            "tests/integration/test_generate.py": "SmolLM2",
            "tests/integration/test_real_bases.py": "SmolLM2"}  # fmt: skip


class Report(Protocol):
    """What pytest reports of one phase of a test: set-up, call or teardown."""

    nodeid: str
    duration: float


def process_count(cpus: int) -> int:
    """Return the number of processes on so many cores: one for each, at most four, and one.

    A test on Ray waits for half of its time: for processes to start, and for what they are to notice.
    """
    return min(cpus, 4) + 1


def tier_of(nodeid: str) -> str:
    """Return the tier of a test: its folder."""
    return nodeid.split("/")[1]


def place_of(nodeid: str) -> tuple[int, int]:
    """Return the key by which tests are sorted: by tier, and the long files of a tier first."""
    name = nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")
    return TIERS.index(tier_of(nodeid)), LONG.index(name) if name in LONG else len(LONG)


def group_of(nodeid: str) -> str:
    """Return the group of a test: those of a file run in one process, as they share what a fixture made."""
    file = nodeid.partition("::")[0]
    return TOGETHER.get(file, file)


def time_lines(reports: Iterable[Report]) -> list[str]:
    """Return a line for each tier that ran: its number of tests, and their seconds in all processes together."""
    seconds: dict[str, float] = dict.fromkeys(TIERS, 0.0)
    tests: dict[str, set[str]] = {tier: set() for tier in TIERS}
    for report in reports:
        tier = tier_of(report.nodeid)
        seconds[tier] += report.duration
        tests[tier].add(report.nodeid)
    return [f"{tier:12}{len(tests[tier]):6} tests {seconds[tier]:6.0f} s" for tier in reversed(TIERS) if tests[tier]]
