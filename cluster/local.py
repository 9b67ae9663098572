"""Ray for one command: the cluster that is there, or one started inside this process and ended with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_session() -> Iterator[None]:
    """Within this context Ray is up.

    ``RAY_ADDRESS`` names a running cluster; without it one is started for all cores of this machine, and every process
    of it ends with the context.
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
