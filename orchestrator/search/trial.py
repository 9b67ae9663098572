"""A trial of a search: one point of the space, trained up to a rung, or a member of a cut; and its form in MLflow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.plan.choosing import Point
from orchestrator.registry import RunRecord

Origin = Literal["sampled", "parent", "cut", "retrained", "shared", "confirming", "reference"]
"""Why a trial was made: suggested by the sampler; to be cut; cut from that one; trained because its cut is doubtful;
recommended for another task; to confirm a finalist with another seed; or a plain LoRA adapter for comparison, which is
no candidate."""

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class RungResult:
    """What was measured on the validation split when a trial reached a rung.

    Attributes:
        steps: Optimizer steps taken.
        accuracy: Accuracy of the best evaluation so far, 0 to 1.
        loss: Mean cross-entropy of that evaluation.
        seconds: Training time so far.
    """

    steps: int
    accuracy: float
    loss: float
    seconds: float


@dataclass
class Trial:
    """A trial, and how far it came.

    Attributes:
        task: Task whose validation split it is measured on.
        number: Number of the trial within its task's search, from 1.
        point: Its point.
        spec_hash: Hash of everything that decides its result.
        parameters: Adapter parameters, known before it is trained.
        origin: Why it was made.
        seed: Number of the random seed: 0 for that of the task, others for its repetitions.
        context: What trials must have in common so that one teaches about the other: base, data and training.
        description: Rank, factors and shapes as text, for tables and MLflow.
        state: ``stopped`` means that the scheduler ended it at a rung, ``finished`` that its training is complete.
        rungs: Its results, one for each rung.
        run_id: Its MLflow run; empty before it is recorded.
        error: Message of its failure.
    """

    task: str
    number: int
    point: Point
    spec_hash: str
    parameters: int
    origin: Origin = "sampled"
    seed: int = 0
    context: str = ""
    description: dict[str, Any] = field(default_factory=dict)
    state: State = "waiting"
    rungs: list[RungResult] = field(default_factory=list)
    run_id: str = ""
    error: str = ""

    @property
    def key(self) -> str:
        """The name of the trial in the worker pool, the live view and MLflow."""
        return f"{self.task} {self.number}"

    @property
    def steps(self) -> int:
        """Optimizer steps of the last rung; 0 before the first one."""
        return self.rungs[-1].steps if self.rungs else 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it remains to be done."""
        return self.state in ("finished", "stopped", "failed")

    @property
    def is_measured(self) -> bool:
        """Whether it has an accuracy that can be compared with those of other trials."""
        return bool(self.rungs) and math.isfinite(self.accuracy) and self.state != "failed"

    @property
    def accuracy(self) -> float:
        """Validation accuracy at the last rung; NaN before the first one."""
        return self.rungs[-1].accuracy if self.rungs else math.nan

    @property
    def loss(self) -> float:
        """Validation loss at the last rung; NaN before the first one."""
        return self.rungs[-1].loss if self.rungs else math.nan

    @property
    def point_key(self) -> str:
        """Text that is equal for trials of the same point, whatever their seed."""
        return json.dumps(self.point, sort_keys=True)

    def tags(self) -> dict[str, str]:
        """Return the tags of its run that change while it is trained."""
        rungs = [[rung.steps, rung.accuracy, rung.loss, round(rung.seconds, 3)] for rung in self.rungs]
        return {"state": self.state, "rungs": json.dumps(rungs)} | ({"error": self.error} if self.error else {})

    def first_tags(self) -> dict[str, str]:
        """Return the tags of its run that stay."""
        tags = {
            "point": self.point_key,
            "number": self.number,
            "origin": self.origin,
            "seed": self.seed,
            "context": self.context,
        }
        return {key: str(value) for key, value in tags.items()} | {"described": json.dumps(self.params())}

    def params(self) -> dict[str, Any]:
        """Return the parameters of its run, which MLflow's tables show."""
        return {**self.description, "parameters": self.parameters}

    def metrics(self) -> dict[str, float]:
        """Return the metrics of its last rung."""
        last = self.rungs[-1]
        return {"accuracy": last.accuracy, "loss": last.loss, "seconds": last.seconds, "parameters": self.parameters}


def next_number(trials: Iterable[Trial]) -> int:
    """Return the number of the next trial of a task. Runs may have been deleted, so it is not their count."""
    return max((trial.number for trial in trials), default=0) + 1


def read_trial(run: RunRecord) -> Trial | None:
    """Return the trial of an MLflow run; None if the run is not readable as one, as those of older versions."""
    try:
        rungs = [RungResult(*values) for values in json.loads(run.tags["rungs"])]
        described = json.loads(run.tags["described"])
        trial = Trial(
            task=run.tags["task"],
            number=int(run.tags["number"]),
            point=json.loads(run.tags["point"]),
            spec_hash=run.tags["spec_hash"],
            parameters=int(described.pop("parameters")),
            origin=run.tags["origin"],  # type: ignore[arg-type]
            seed=int(run.tags["seed"]),
            context=run.tags["context"],
            description=described,
            state=run.tags["state"],  # type: ignore[arg-type]
            rungs=rungs,
            run_id=run.run_id,
            error=run.tags.get("error", ""),
        )
    except (KeyError, TypeError, ValueError):
        return None
    sound = isinstance(trial.point, dict) and all(
        isinstance(value, (int, float)) and math.isfinite(value) for rung in rungs for value in vars(rung).values()
    )
    return trial if sound else None
