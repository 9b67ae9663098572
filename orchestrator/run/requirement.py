"""Check of the config key ``router.require``: which experts must exist before a router is trained."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from orchestrator.plan.quantities import format_names


def unmet_requirement(require: str | float | Sequence[str], tasks: Sequence[str], registered: Collection[str]) -> str:
    """Return why a router cannot be trained yet, or an empty string if it can.

    Args:
        require: ``all``, a share of ``tasks`` (a float), or the names of the required tasks.
        tasks: All tasks of the library.
        registered: The tasks with a registered expert.
    """
    if not registered:
        return "no expert is registered"
    if isinstance(require, float):
        count = math.ceil(require * len(tasks) - 1e-9)
        if len(registered) >= count:
            return ""
        return f"{len(registered)} of {len(tasks)} experts are registered, {count} are required"
    required = tasks if require == "all" else require
    missing = [task for task in required if task not in registered]
    return f"the router requires {format_names(missing)}" if missing else ""
