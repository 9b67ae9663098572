"""What the report of a search says of one task, from the record of its trials."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config.yaml_document import dump_yaml
from orchestrator.report.search_tables import Record

Trials = Sequence[Mapping[str, Any]]
"""Trials, or other points with parameters and accuracy, as in the artifact ``trials.json``."""

MAX_ERRORS = 20  # different messages of failed trials


@dataclass(frozen=True)
class RungRow:
    """What became of the trials that reached a rung.

    Attributes:
        steps: Steps of the rung.
        reached: Trials that were measured there.
        went_on: Of these, those that reached the next one.
        ended: Numbers of the others, by state.
        best: Highest accuracy at the rung.
    """

    steps: int
    reached: int
    went_on: int
    ended: Mapping[str, int]
    best: float


@dataclass(frozen=True)
class ErrorRow:
    """An error, and the numbers of the trials that it ended."""

    error: str
    trials: tuple[int, ...]


def all_trials(record: Record) -> list[Mapping[str, Any]]:
    """Return the trials that were measured, and those that failed."""
    return [*record["trials"], *record.get("failed", ())]


def count_states(trials: Trials) -> Counter[str]:
    """Return the number of trials in each state."""
    return Counter(trial.get("state", "finished") for trial in trials)


def rung_rows(trials: Trials) -> list[RungRow]:
    """Return a row for each rung; none if every trial was trained to its end at once."""
    halved = [trial for trial in trials if trial.get("origin") == "sampled" and trial.get("rungs")]
    steps = sorted({rung["steps"] for trial in halved for rung in trial["rungs"]})
    rows = []
    for step in steps if len(steps) > 1 else ():
        results = {
            i: rung["accuracy"]
            for i, trial in enumerate(halved)
            for rung in trial["rungs"]
            if rung["steps"] == step
        }  # fmt: skip
        last = [halved[i] for i in results if halved[i]["rungs"][-1]["steps"] == step]
        rows.append(RungRow(step, len(results), len(results) - len(last), count_states(last), max(results.values())))
    return rows


def error_rows(trials: Trials) -> list[ErrorRow]:
    """Return the errors of failed trials, the most frequent one first."""
    by_error: dict[str, list[int]] = {}
    for trial in trials:
        if trial.get("state") == "failed":
            by_error.setdefault(trial.get("error", ""), []).append(trial["number"])
    rows = [ErrorRow(error, tuple(numbers)) for error, numbers in by_error.items()]
    return sorted(rows, key=lambda row: -len(row.trials))


def choice_names(record: Record) -> list[str]:
    """Return the choices of a search in the order of its space."""
    used = dict.fromkeys(name for trial in all_trials(record) for name in trial.get("point", ()))
    return [name for name in {**dict.fromkeys(record["space"]), **used} if name in used]


def point_text(point: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return a point as text, such as ``rank 4; factors 2+3``."""
    return "; ".join(f"{name} {option_text(point[name])}" for name in names if name in point)


def option_text(value: Any) -> str:
    """Return an option of a choice as text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(option_text, value))
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def config_text(record: Record) -> str:
    """Return the lines of a config that train the recommended point."""
    return dump_yaml({"tasks": {record["task"]: record["winner"]["sections"]}})


def reason_text(record: Record) -> str:
    """Return why the recommended point is recommended, and how sure that is."""
    winner = record["winner"]
    within = record.get("within", 0.0)
    compared = _compared(record)
    best = max((each["accuracy"] for each in compared), default=winner["accuracy"])
    seeds = f"trained with {winner['seeds']} seeds" if winner["seeds"] > 1 else "trained to their end"
    measure = "a mean accuracy" if winner["seeds"] > 1 else "an accuracy"
    text = (
        f"Of the {len(compared)} points that were {seeds}, it has the fewest parameters with {measure} of at least "
        f"{best - within:.3f}, which is {within:g} below the best one"
        + (", and a mean loss within one standard error of the lowest." if winner["seeds"] > 1 else ".")
    )
    if len(compared) == 1:
        text = f"It is the only point of the search that was {seeds.replace('their', 'its')}."
    if winner["seeds"] > 1:
        return text
    return text + " Every point was measured with one seed: search.confirm repeats the best ones with others."


def _compared(record: Record) -> list[Mapping[str, Any]]:
    """Return the points of which the recommended one is the smallest that is accurate enough."""
    seeds = record["winner"]["seeds"]
    if seeds > 1:
        return [each for each in record["finalists"] if each["seeds"] == seeds]
    by_point: dict[str, Mapping[str, Any]] = {}
    complete = [trial for trial in record["trials"] if trial["state"] == "finished"]
    for trial in sorted(complete, key=lambda trial: trial["origin"] != "cut"):  # a training of a cut point replaces it
        by_point[json.dumps(trial["point"])] = trial
    return list(by_point.values())


def best_first(trials: Trials) -> list[Mapping[str, Any]]:
    """Return trials by accuracy, and those without one at the end."""
    return sorted(trials, key=lambda trial: (-trial.get("accuracy", -1.0), trial.get("number", 0)))


def thin(trials: Trials, count: int, kept: Sequence[Mapping[str, Any]] = ()) -> list[Mapping[str, Any]]:
    """Return at most ``count`` trials, evenly spaced in their order, and those of ``kept`` in any case."""
    if len(trials) <= count:
        return list(trials)
    hashes = {trial["spec_hash"] for trial in kept}
    rest = [trial for trial in trials if trial["spec_hash"] not in hashes]
    left = max(0, count - (len(trials) - len(rest)))
    chosen = {id(rest[i * len(rest) // left]) for i in range(left)}
    return [trial for trial in trials if trial["spec_hash"] in hashes or id(trial) in chosen]
