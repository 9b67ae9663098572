"""Whether enough experts are there to train a router for them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


def unmet_requirement(require: str | float | Sequence[str], tasks: Sequence[str], there: Collection[str]) -> str:
    """Why the router cannot be trained yet; empty where it can.

    ``require`` is ``all``, the share of ``tasks`` that must be there, or the names of those that must.
    """
    if not there:
        return "there is no expert"
    if isinstance(require, float):
        need = math.ceil(require * len(tasks) - 1e-9)
        return "" if len(there) >= need else f"{len(there)} of {len(tasks)} experts are there, {need} are required"
    wanted = tasks if require == "all" else require
    absent = [task for task in wanted if task not in there]
    return f"the router requires {_listed(absent)}" if absent else ""


def _listed(tasks: Sequence[str]) -> str:
    shown = ", ".join(tasks[:5])
    return f"{shown} and {len(tasks) - 5} more" if len(tasks) > 5 else shown
