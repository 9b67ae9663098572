"""Connect to the cluster of ``RAY_ADDRESS``, or start one inside this process for the length of a command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_session() -> Iterator[None]:
    """Keep Ray initialised inside this context.

    Connects to the cluster of ``RAY_ADDRESS`` if it is set. Otherwise starts a cluster with all cores of this machine,
    whose processes end with the context. Does nothing where Ray is initialised already.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    own = {} if address else {"address": "local", "num_cpus": os.cpu_count(), "include_dashboard": False}
    ray.init(**own, log_to_driver=False, logging_level="warning", configure_logging=False)  # type: ignore[arg-type]
    try:
        yield
    finally:
        ray.shutdown()
