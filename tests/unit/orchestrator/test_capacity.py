"""Number of jobs on nodes, the limiting resource, and the error if nothing fits."""

from __future__ import annotations

import pytest

from orchestrator.pool.capacity import (
    JobResources,
    Node,
    jobs_on_node,
    limiting_resource,
    max_parallel_jobs,
    require_fits,
)
from ttmoe.errors import InfeasibleError

BIG, SMALL = Node("big", 16, 2, 64 * 10**9), Node("small", 4, 0, 8 * 10**9)


@pytest.mark.parametrize(
    ("job", "count"),
    [
        (JobResources(1), 16),
        (JobResources(3), 5),
        (JobResources(1, 1), 2),
        (JobResources(1, 2), 1),
        (JobResources(1, 0.5), 4),
        (JobResources(1, 0.3), 6),  # three on each GPU: remainders of two GPUs do not add up
        (JobResources(1, 0.6), 2),
        (JobResources(8, 0.1), 2),
        (JobResources(1, 0, 10 * 10**9), 6),
        (JobResources(0.1), 160),
        (JobResources(1 / 3), 48),
        (JobResources(1, 3), 0),
    ],
)
def test_jobs_on_a_node(job, count):
    assert jobs_on_node(BIG, job) == count


def test_nodes_add_up_and_a_limit_holds():
    assert max_parallel_jobs([BIG, SMALL], JobResources(2)) == 10
    assert max_parallel_jobs([BIG, SMALL], JobResources(2), 3) == 3
    assert max_parallel_jobs([], JobResources(2)) == 0


def test_the_limiting_resource_is_returned():
    assert limiting_resource([BIG, SMALL], JobResources(1)) == "CPU"
    assert limiting_resource([BIG, SMALL], JobResources(1, 1)) == "GPU"
    assert limiting_resource([BIG, SMALL], JobResources(1, 0, 20 * 10**9)) == "memory"


def test_a_job_that_fits_no_node_is_refused_and_the_largest_node_named():
    require_fits([SMALL, BIG], JobResources(16, 2), "a job")
    # the cluster has twenty cores, but no node has
    with pytest.raises(InfeasibleError, match="20 CPUs") as caught:
        require_fits([SMALL, BIG], JobResources(20), "a job")
    assert "a job requires 20 CPUs, 0 GPUs, and the largest node has 16 CPUs, 2 GPUs, 64.0 GB" in str(caught.value)
    assert caught.value.code == 3
    with pytest.raises(InfeasibleError, match="no nodes"):
        require_fits([], JobResources(1), "a job")
