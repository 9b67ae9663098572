"""The content of a report as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from heapq import nlargest
from typing import Any

from orchestrator.report.incidents import Incident
from orchestrator.report.time_use import TimeUse

Points = tuple[tuple[float, float], ...]
"""Pairs of step and value, in the order of steps."""


@dataclass(frozen=True)
class ExpertRow:
    """One row of the table of experts; None where a value is not known.

    Attributes:
        state: ``registered``, ``cached``, ``failed``, ``stopped`` or ``waiting``.
        version: Number of the registered version.
        classes: Number of classes; None for generated text.
        majority: Accuracy of always answering the most frequent class.
        accuracy: Test accuracy of the expert on its own task.
        routed: Test accuracy when the router chooses the expert.
        parameters: Trainable parameters of the adapter.
        head: Trainable parameters of the head.
        lora_parameters: Parameters of LoRA with rank 16 on the same maps.
        seconds: Duration of the job.
        attempts: Number of attempts, failed ones included.
        error: Why the expert failed; empty if it did not.
        rows: Rows by split.
        removed: Rows of the source that are in no split, by reason.
        cut: Rows that fill the base's maximum length, and are cut there if they are longer.
    """

    task: str
    state: str
    version: int | None = None
    classes: int | None = None
    majority: float | None = None
    accuracy: float | None = None
    routed: float | None = None
    parameters: int | None = None
    head: int | None = None
    lora_parameters: int | None = None
    steps: int | None = None
    seconds: float | None = None
    attempts: int = 1
    error: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    removed: Mapping[str, int] = field(default_factory=dict)
    cut: int | None = None

    @property
    def share(self) -> float | None:
        """Parameters as a share of those of LoRA with rank 16."""
        return self.parameters / self.lora_parameters if self.parameters and self.lora_parameters else None


@dataclass(frozen=True)
class Curve:
    """Training loss and validation accuracy of one expert by step."""

    task: str
    loss: Points
    accuracy: Points


@dataclass(frozen=True)
class RoutingReport:
    """The test of the router on the mixed test rows.

    Attributes:
        version: Number of the router's registered version.
        accuracy: Share of the rows for which the router chose the task's own expert.
        rows: Number of test rows.
        tasks: Names of the tasks, in the order of ``confusion``.
        confusion: ``confusion[i][j]`` rows of task i were sent to the expert of task j.
        metrics: Metrics of the evaluation by name.
        depths: Routers that read fewer layers of the base, as in ``workers.routing.depths``.
        groups: Tasks that answer together, or look like one task in several data sets.
    """

    version: int
    accuracy: float
    rows: int
    tasks: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    depths: tuple[Mapping[str, Any], ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()

    def frequent_errors(self, count: int = 12) -> list[tuple[str, str, int, float]]:
        """Return the most frequent wrong choices: task, chosen expert, rows, share of the task's rows."""
        errors = (
            (self.tasks[i], self.tasks[j], rows, rows / total)
            for i, counts in enumerate(self.confusion)
            for total in [sum(counts)]
            for j, rows in enumerate(counts)
            if i != j and rows
        )
        return nlargest(count, errors, key=lambda error: error[2])


@dataclass(frozen=True)
class SearchReport:
    """A finished search: the task, all trials, and the trials of the Pareto front."""

    task: str
    trials: tuple[Mapping[str, Any], ...]
    front: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class ResourceUsage:
    """Work that the worker pool did; None where it was not counted.

    Attributes:
        base_loads: How often a process loaded the base.
        worker_slots: Number of worker processes.
        real_tokens: Share of the computed tokens that are not padding.
        time: Where the seconds of stage 1 went.
    """

    base_loads: int | None = None
    worker_slots: int | None = None
    real_tokens: float | None = None
    time: TimeUse = field(default_factory=TimeUse)


@dataclass(frozen=True)
class RunReport:
    """Everything that the page shows.

    Attributes:
        status: ``FINISHED``, ``FAILED``, ``KILLED`` or ``RUNNING``.
        base: Name of the base.
        version: Version of ttmoe.
        commit: Commit of the code; empty if it is not known.
        seconds: Duration of the run.
        config: The resolved config as YAML.
        facts: Further lines of the section on the run, by name.
    """

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
