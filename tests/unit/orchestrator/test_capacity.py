"""How many jobs fit where."""

from __future__ import annotations

import pytest

from orchestrator.capacity import Need, Node, jobs_at_once, places, require_fits, scarce
from ttmoe.errors import InfeasibleError

BIG, SMALL = Node("big", 16, 2, 64 * 10**9), Node("small", 4, 0, 8 * 10**9)


@pytest.mark.parametrize(
    ("need", "count"),
    [
        (Need(1), 16),
        (Need(3), 5),
        (Need(1, 1), 2),
        (Need(1, 2), 1),
        (Need(1, 0.5), 4),
        (Need(1, 0.3), 6),  # three to a GPU: what is left of one joins no other
        (Need(1, 0.6), 2),
        (Need(8, 0.1), 2),
        (Need(1, 0, 10 * 10**9), 6),
        (Need(0.1), 160),
        (Need(1 / 3), 48),
        (Need(1, 3), 0),
    ],
)
def test_places_on_a_node(need, count):
    assert places(BIG, need) == count


def test_nodes_add_up_and_a_limit_holds():
    assert jobs_at_once([BIG, SMALL], Need(2)) == 10
    assert jobs_at_once([BIG, SMALL], Need(2), 3) == 3
    assert jobs_at_once([], Need(2)) == 0


def test_the_scarce_resource_is_named():
    assert scarce([BIG, SMALL], Need(1)) == "CPU"
    assert scarce([BIG, SMALL], Need(1, 1)) == "GPU"
    assert scarce([BIG, SMALL], Need(1, 0, 20 * 10**9)) == "memory"


def test_what_fits_nowhere_is_refused_with_what_there_is():
    require_fits([SMALL, BIG], Need(16, 2), "a job")
    # twenty cores are there, but not on one node
    with pytest.raises(InfeasibleError, match="20 CPUs") as found:
        require_fits([SMALL, BIG], Need(20), "a job")
    assert "16 CPUs, 2 GPUs" in str(found.value)
    assert found.value.code == 3
    with pytest.raises(InfeasibleError, match="no nodes"):
        require_fits([], Need(1), "a job")
