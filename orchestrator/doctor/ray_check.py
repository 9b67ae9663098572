"""Check that Ray starts here, or that the cluster of RAY_ADDRESS takes this process, and that each node runs a task."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.metadata import version

from cluster.attaching import cluster_address
from cluster.local import ray_session
from orchestrator.doctor.checks import Check, checked, passed


@checked("Ray")
def check_ray(stack: ExitStack) -> Check:
    """Connect to Ray until the stack is closed, and run a task on each node.

    Args:
        stack: Keeps the session of Ray.
    """
    stack.enter_context(ray_session())
    from orchestrator.pool.ray_workers import call_on_nodes, cluster_nodes

    nodes, address = cluster_nodes(), cluster_address()
    call_on_nodes(nodes, int)
    size = f"{sum(node.cpus for node in nodes):g} CPUs, {sum(node.gpus for node in nodes):g} GPUs"
    nodes_of = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} of the cluster at {address}"
    return passed(f"{version('ray')}; {nodes_of if address else 'it starts here, and'} ran a task: {size}")
