"""Incidents: what failed in a run, and what was done about it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from workers.failure import Failure

EXPERT_STAGE_PREFIX = "Stage 1"  # how the name of the stage begins whose failures count as an expert's attempts


@dataclass(frozen=True)
class Incident:
    """One failure. ``when`` is in seconds since the epoch, ``key`` the piece of work (empty: the whole stage),
    ``attempt`` counts from one, ``action`` is what was done, in words.
    """

    when: float
    stage: str
    key: str
    attempt: int
    failure: Failure
    action: str


def incidents_to_json(incidents: Iterable[Incident]) -> str:
    """The incidents as text, for the record."""
    return json.dumps([asdict(incident) for incident in incidents], indent=1)
