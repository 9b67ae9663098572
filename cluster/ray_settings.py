"""Ray's settings, which it reads from the environment when it is imported or started."""

from __future__ import annotations

import os

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives a session would start another cluster
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would start every worker through uv
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # jobs without a GPU keep CUDA_VISIBLE_DEVICES as it is
    # Printed among the progress, with the end of a log; what follows from them is reported as failures of jobs.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "Raylet is terminated|has been marked dead",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new reporter prints boxes even when verbosity is 0
}


def apply_settings() -> None:
    """Set each variable that the user's environment does not set."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
