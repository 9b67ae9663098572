"""``python -m cluster.wait_for_nodes N [SECONDS]``: wait until the cluster of RAY_ADDRESS has N nodes, in a job."""

from __future__ import annotations

import os
import sys
import time

from cluster.attaching import AUTH_MODE, has_token, health_error
from cluster.error import ClusterError
from cluster.local import ray_session

SECONDS = 300
"""Longest wait; a first import of Ray from a shared file system takes a minute on each node."""


def wait_for_nodes(count: int, seconds: float = SECONDS) -> None:
    """Wait until the cluster of ``RAY_ADDRESS`` has ``count`` nodes.

    Raises:
        ClusterError: If it has fewer after this time.
    """
    import ray

    address, ends, found = os.environ["RAY_ADDRESS"], time.monotonic() + seconds, 0
    mode = os.environ.get(AUTH_MODE) or ("token" if has_token() else "disabled")
    while health_error(address, mode):
        if time.monotonic() > ends:
            raise ClusterError(
                "the head node of Ray does not start",
                where=address,
                fix="see the output of Ray there, on Slurm ray-head.txt",
            )
        time.sleep(1)
    while found < count:
        if time.monotonic() > ends:
            what = f"{found} of {count} nodes have joined the cluster"
            fix = "see the output of Ray on the others; on Slurm ray-workers.txt, on a cloud the autoscaler's log"
            raise ClusterError(what, where=address, fix=fix)
        with ray_session():
            while (found := sum(node["Alive"] for node in ray.nodes())) < count and time.monotonic() < ends:
                time.sleep(1)


if __name__ == "__main__":
    try:
        wait_for_nodes(int(sys.argv[1]), *map(float, sys.argv[2:3]))
    except ClusterError as error:
        sys.exit(str(error))
