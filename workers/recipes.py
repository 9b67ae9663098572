"""Recipe numbers: a version number for each kind of computation, which is part of the identity of its results.

Raise a number if the code would produce another result from the same settings and data. Results with the old number are
not reused: the next run trains experts, routers and searches again, and fills caches again. The version of the package
is recorded with a result but does not identify it, so a release with the same recipe numbers reuses all results.
"""

from __future__ import annotations

RECIPES = {
    # Part of a spec, and so of the identity of a registered version (see orchestrator/plan/identity.py).
    "expert": 3,
    "router": 4,
    "search": 2,
    "import": 1,
    "cut": 2,
    # Part of a cache key.
    "prepared": 2,
    "tokens": 1,
    "trunk": 2,
    "features": 2,
}
