"""The record of a search, from which its artifacts and its report are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.plan.choosing import Point
from orchestrator.search.finalists import Candidate, candidates, choose_winner, small_enough
from orchestrator.search.importances import choice_importances
from orchestrator.search.pareto import hypervolumes, pareto_front
from orchestrator.search.trial import Trial


@dataclass(frozen=True)
class TaskRecord:
    """The result of the search of one task.

    Attributes:
        task: Name of the task.
        trials: The trials that were measured, as JSON objects.
        failed: Those that failed.
        front: The points that no other dominates, of the same form: the first trial of each, with the means over its
            ``seeds``.
        winner: The point that is recommended, with its mean accuracy over seeds, and under ``sections`` what makes a
            task of a config train it; None if no trial is complete.
        references: LoRA adapters on the same layers: ``name``, ``parameters`` and ``accuracy`` of each.
        finalists: The points that were repeated with several seeds, of the form of ``winner``.
        space: All options by choice.
        lora16_parameters: Parameters of LoRA of rank 16 on the same layers.
        within: See ``choose_winner``.
        importances: The importance of each choice, see ``choice_importances``.
        hypervolumes: Hypervolume after each measured trial of the first seed, in the order of their numbers; the
            reference point has no accuracy and the parameters of LoRA of rank 16.
    """

    task: str
    trials: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    front: list[dict[str, Any]]
    winner: dict[str, Any] | None
    references: list[dict[str, Any]]
    finalists: list[dict[str, Any]]
    space: dict[str, Any]
    lora16_parameters: int
    within: float
    importances: dict[str, float] | None
    hypervolumes: list[float]


def make_task_record(
    task: str,
    trials: Sequence[Trial],
    within: float,
    most: int | None,
    space: dict[str, Any],
    lora16_parameters: int,
    config_sections: Callable[[Point], dict[str, Any]],
) -> TaskRecord:
    """Return the record of a task's trials.

    Args:
        task: Name of the task.
        trials: Its trials.
        within: See ``choose_winner``.
        most: Largest number of parameters of what is recommended; None for any.
        space: All options by choice.
        lora16_parameters: Parameters of LoRA of rank 16 on the same layers.
        config_sections: Returns the sections of a task that has this point.
    """
    measured = [_trial_json(trial) for trial in trials if trial.is_measured and trial.origin != "reference"]
    failed = [_trial_json(trial) for trial in trials if trial.state == "failed"]
    eligible = small_enough(trials, most)
    winner = choose_winner(eligible, within)
    repeated = [each for each in candidates(eligible) if len(each.trials) > 1]
    return TaskRecord(
        task,
        measured,
        failed,
        pareto_front(_points(eligible)),
        _candidate_json(winner) | {"sections": config_sections(winner.trials[0].point)} if winner else None,
        [
            {"name": f"LoRA-{trial.point['lora']}", "parameters": trial.parameters, "accuracy": trial.accuracy}
            for trial in trials
            if trial.is_measured and trial.origin == "reference"
        ],
        [_candidate_json(each) for each in sorted(repeated, key=lambda each: each.parameters)],
        space,
        lora16_parameters,
        within,
        choice_importances(trials),
        hypervolumes([trial for trial in measured if trial["seed"] == 0], lora16_parameters),
    )


def _points(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return the points that were measured: of several seeds, the mean, so that a lucky one is not on the front."""
    complete = candidates(trials)
    stopped = [Candidate((trial,)) for trial in trials if trial.state == "stopped" and trial.is_measured]
    return [
        _trial_json(each.trials[0]) | {"accuracy": each.accuracy, "loss": each.loss, "seeds": len(each.trials)}
        for each in complete + stopped
    ]


def _trial_json(trial: Trial) -> dict[str, Any]:
    found = {
        "number": trial.number,
        "state": trial.state,
        "origin": trial.origin,
        "seed": trial.seed,
        "point": trial.point,
        "spec_hash": trial.spec_hash,
        "parameters": trial.parameters,
        **trial.description,
        "rungs": [vars(rung) for rung in trial.rungs],
    }
    if trial.is_measured:
        found |= trial.metrics() | {"steps": trial.steps}
    return found | ({"error": trial.error} if trial.error else {})


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    first = candidate.trials[0]
    return {
        "point": first.point,
        **first.description,
        "parameters": candidate.parameters,
        "accuracy": candidate.accuracy,
        "spread": candidate.spread,
        "loss": candidate.loss,
        "seeds": len(candidate.trials),
        "accuracies": [trial.accuracy for trial in candidate.trials],
        "trials": [trial.number for trial in candidate.trials],
    }
