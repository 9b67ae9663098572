"""Ray for one command: the cluster that is there, or one started inside this process and ended with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Ray reads these when it is imported or started. `setdefault`: what the user says wins.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # the default of the cluster's side; a driver that attaches must say it too
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would start every worker through uv
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # jobs without a GPU keep CUDA_VISIBLE_DEVICES as it is
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new reporter prints boxes even when it is told to be quiet
}
for _name, _value in SETTINGS.items():  # at import: whoever imports Ray imports this module first
    os.environ.setdefault(_name, _value)


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
