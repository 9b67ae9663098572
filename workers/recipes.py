"""Recipe numbers: the version of each computation, a part of the identity of its results.

Raise a number if the code would produce another result from the same settings and data. Results with the old number are
then computed again: experts, routers and searches are retrained, caches are filled anew. The version of the package is
recorded with a result but is no part of its identity, so a release that computes the same results reuses all of them.
"""

from __future__ import annotations

RECIPES = {
    # Part of a spec, and so of the identity of a registered version (see orchestrator/plan/identity.py).
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
