"""What a report says, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator.report.incidents import Incident

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ExpertRow:
    """One line of the table; None is what is not known."""

    task: str
    state: str
    version: int | None = None
    classes: int | None = None
    majority: float | None = None
    accuracy: float | None = None
    routed: float | None = None
    parameters: int | None = None
    lora_parameters: int | None = None
    steps: int | None = None
    seconds: float | None = None
    attempts: int = 1
    error: str = ""

    @property
    def share(self) -> float | None:
        """Parameters as a share of what LoRA of rank 16 would have."""
        return self.parameters / self.lora_parameters if self.parameters and self.lora_parameters else None


@dataclass(frozen=True)
class Curve:
    """How a training went: ``(step, value)`` of the training loss and of the validation accuracy."""

    task: str
    loss: Points
    accuracy: Points


@dataclass(frozen=True)
class RoutingReport:
    """The router's test: ``confusion[i][j]`` rows of task i were sent to the expert of task j.

    ``metrics`` are the evaluation's; ``depths`` are routers of the lower layers alone, as ``workers.routing.depths`` has them.
    """

    version: int
    accuracy: float
    rows: int
    tasks: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    depths: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class SearchReport:
    """A finished search: trials and the front of those that none beats, each with parameters and accuracy."""

    task: str
    trials: tuple[Mapping[str, Any], ...]
    front: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class ResourceUsage:
    """What the work cost beside time; None is what was not counted. ``real_tokens`` is their share, without padding."""

    base_loads: int | None = None
    worker_slots: int | None = None
    real_tokens: float | None = None


@dataclass(frozen=True)
class RunReport:
    """All that the page shows. ``facts`` are further lines of its head; the key is the word for it."""

    library: str
    status: str
    base: str
    base_digest: str
    version: str
    commit: str
    began: datetime
    seconds: float
    experts: tuple[ExpertRow, ...]
    curves: tuple[Curve, ...] = ()
    incidents: tuple[Incident, ...] = ()
    routing: RoutingReport | None = None
    search: SearchReport | None = None
    usage: ResourceUsage = ResourceUsage()
    config: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
