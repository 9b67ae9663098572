"""Failures in a run and what was done about them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from workers.failure import Failure

EXPERT_STAGE_PREFIX = "Stage 1"
"""Start of the name of the stage in which failures count as attempts of an expert."""


@dataclass(frozen=True)
class Incident:
    """One failure.

    Attributes:
        when: Time in seconds since the epoch.
        stage: Name of the stage.
        key: The piece of work, such as a task; empty if the whole stage failed.
        attempt: Number of the attempt, from 1.
        failure: The error.
        action: What was done about it, as text.
    """

    when: float
    stage: str
    key: str
    attempt: int
    failure: Failure
    action: str


def incidents_to_json(incidents: Iterable[Incident]) -> str:
    """Return incidents as a JSON list of objects with the fields of ``Incident``."""
    return json.dumps([asdict(incident) for incident in incidents], indent=1)
