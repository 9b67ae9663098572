"""Recipe numbers: the version of each computation, as part of what identifies its result.

Raise a number when the code would produce another result from the same settings and data. Results of the old number
are then computed again: experts, routers and searches are retrained, caches are refilled. The version of the package is
recorded with a result but identifies nothing, so a release that computes the same reuses everything.
"""

from __future__ import annotations

RECIPES = {
    # Part of a spec, so of a registered version's identity (see orchestrator/plan/identity.py).
    "expert": 2,
    "router": 3,
    "search": 1,
    "import": 1,
    # Part of a cache key.
    "prepared": 1,
    "tokens": 1,
    "trunk": 2,
    "features": 2,
}
