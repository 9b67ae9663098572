"""The answer of a library to one input."""

from __future__ import annotations

from dataclasses import dataclass, field

UNKNOWN = "unknown"
"""The task of an input that resembles none of the library's tasks. No task may have this name."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one input.

    Attributes:
        task: The task that the input was routed to, or ``unknown``.
        label: The label; for a choice the index of the option; for an expert that generates text, the text. Empty if
            the task is unknown.
        confidence: The expert's probability of the label, 0 to 1.
        routing: The router's calibrated probability of the task, or of its group of tasks, 0 to 1.
        scores: The probability of every label, or of every option by its index; in a group of tasks, the mean over
            its experts, weighted by the router. Empty for generated text and for an unknown task.
        familiar: False if the row resembles none of the tasks. It has another task than ``unknown`` if one was wanted.
    """

    task: str
    label: str
    confidence: float
    routing: float
    scores: dict[str, float] = field(default_factory=dict)
    familiar: bool = True


def mix_predictions(name: str, members: dict[str, Prediction], shares: dict[str, float]) -> Prediction:
    """Return the answer of the experts of a group: the mean of their probabilities by label, weighted by share.

    Args:
        name: The chosen expert.
        members: The answer of each expert.
        shares: The weight of each expert.
    """
    own = members[name]
    if len(members) == 1 or not own.scores:
        return own
    labels = dict.fromkeys(label for member in members.values() for label in member.scores)
    scores = {
        label: sum(shares[task] * member.scores.get(label, 0.0) for task, member in members.items()) for label in labels
    }
    best = max(scores, key=scores.__getitem__)
    return Prediction(name, best, min(1.0, scores[best]), own.routing, scores)
