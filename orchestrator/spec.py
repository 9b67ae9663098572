"""Identity: the hash of everything that decides what a piece of work gives."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Raised when the code would train differently from the same settings; the code's own version is recorded, not hashed.
EXPERT_RECIPE = 2
ROUTER_RECIPE = 3
SEARCH_RECIPE = 1


def spec_hash(spec: dict[str, Any]) -> str:
    """sha256 of the spec's canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
