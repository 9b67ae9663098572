"""Failures of worker processes, from the errors that Ray raises in place of their results."""

from __future__ import annotations

import socket

import ray

from workers.failure import Failure


def failure_from_ray(error: BaseException, node: str) -> Failure:
    """Convert an error of Ray to a failure.

    Args:
        error: Error that Ray raised instead of the unit's results.
        node: Ray's id of the node on which the worker ran.
    """
    lines = str(error).strip().splitlines()
    message = lines[-1] if lines else ""
    if isinstance(error, ray.exceptions.RayTaskError):  # the unit or its result cannot be pickled or unpickled
        return Failure("code", type(error).__name__, message, str(error))
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return Failure("memory", "OutOfMemoryError", message, str(error))
    preempted = getattr(error, "preempted", False)
    if preempted or isinstance(error, ray.exceptions.NodeDiedError) or not _node_responds(node):
        return Failure("lost", "NodeLost", f"node {node[:8]} left the cluster", str(error), preempted)
    return Failure("died", type(error).__name__, message, str(error))


def _node_responds(node: str) -> bool:
    """Return whether the node accepts connections.

    Ray reports a lost node only seconds after the death of its processes, so the node itself is contacted.
    """
    for entry in ray.nodes():
        if entry["NodeID"] == node and entry["Alive"]:
            try:
                socket.create_connection((entry["NodeManagerAddress"], entry["NodeManagerPort"]), timeout=2).close()
            except OSError:
                return False
            return True
    return False
