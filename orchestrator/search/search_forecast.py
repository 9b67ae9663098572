"""What a search would do: its points, a sample of them, the training it needs, and its memory and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.config.search_settings import SearchSettings
from orchestrator.plan.choosing import Point
from orchestrator.plan.durations import read_times
from orchestrator.plan.forecast import trial_resources
from orchestrator.plan.library_state import LibraryState
from orchestrator.plan.planning import Plan
from orchestrator.plan.space import PointSettings, plan_space
from orchestrator.pool.capacity import JobResources, max_parallel_jobs
from ttmoe.base import empty_body
from workers.tuning.distillation import most_distillation_steps

COUNTED = 1_000_000
"""Number of points up to which a space is counted."""
_SAMPLE = 8


class CountedSpace(Protocol):
    """What a forecast needs of a space."""

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Return the options of every choice by its name."""

    def is_valid(self, point: Point) -> bool:
        """Return whether a point is one of this space."""

    def settings(self, point: Point) -> PointSettings:
        """Return what a point trains."""

    def size(self, limit: int) -> int:
        """Return the number of valid points, counted up to ``limit``."""

    def sample(self, seed: int, number: int) -> list[Point]:
        """Return different valid points at random, or all if there are fewer."""


@dataclass(frozen=True)
class SampledPoint:
    """A point of the sample.

    Attributes:
        point: The point.
        shapes: Shape by role.
        parameters: Number of parameters of the adapter, without the head.
        lora_share: Parameters over those of a LoRA adapter of rank 16 on the layers of the task's own adapter.
        lr: Learning rate of the adapter.
        is_cached: Whether a trial of the point has ended.
    """

    point: Point
    shapes: dict[str, str]
    parameters: int
    lora_share: float
    lr: float
    is_cached: bool


@dataclass(frozen=True)
class SpaceForecast:
    """The space of some tasks, which have the same one.

    Attributes:
        tasks: The tasks.
        size: Number of points; ``COUNTED`` if there are as many or more.
        choices: Options of each choice by its name.
        sample: Some points.
        cached: By task, number of points of which a trial has ended.
    """

    tasks: tuple[str, ...]
    size: int
    choices: dict[str, tuple[Any, ...]]
    sample: tuple[SampledPoint, ...]
    cached: dict[str, int]


@dataclass(frozen=True)
class SearchForecast:
    """What a search would do.

    Attributes:
        search: The search settings.
        method: The method, with the default resolved.
        spaces: The space of each task, equal ones together.
        steps: Expected optimizer steps of all trials that have not ended, within the budget.
        resources: What each trial reserves.
        parallel: Number of trials that run at the same time, as far as the nodes are known.
        seconds: Expected time of the training; None if no earlier training on this base has times.
    """

    search: SearchSettings
    method: str
    spaces: tuple[SpaceForecast, ...]
    steps: int
    resources: JobResources
    parallel: int
    seconds: float | None


def forecast_search(
    plan: Plan,
    state: LibraryState,
    method: str,
    earlier: Mapping[str, Sequence[Point]] | None = None,
    spaces: Mapping[str, CountedSpace] | None = None,
) -> SearchForecast:
    """Forecast the search of a plan. Nothing is trained.

    Args:
        plan: The plan; its config has a search.
        state: State of the library, with the times of earlier trainings.
        method: What trains: ``truncate``, ``tpe``, ``random`` or ``grid``.
        earlier: By task, the points of trials that have ended.
        spaces: By task, the space; None: that of ``plan_space``.

    Raises:
        InputError: If an option does not fit the base, or a space is empty.
        ValueError: If the config has no search.
    """
    if (search := plan.config.search) is None:
        raise ValueError("the config has no search")
    if spaces is None:
        model = empty_body(plan.base)
        spaces = {task: plan_space(plan, task, model) for task in plan.config.searched_tasks}
    alike: dict[str, list[str]] = {}
    for task in spaces:
        job = plan.experts[task].job
        alike.setdefault(repr((job.adapter, job.head, plan.config.search_train(task).lr)), []).append(task)
    known = {
        task: [point for point in (earlier or {}).get(task, ()) if space.is_valid(point)]
        for task, space in spaces.items()
    }
    resources = trial_resources(plan)
    limits = [limit for limit in (search.max_parallel, plan.config.resources.max_parallel) if limit is not None]
    parallel = max_parallel_jobs(plan.nodes, resources, min(limits, default=None))
    shared = len(spaces) - 1 if method != "truncate" else 0  # what is recommended for the other tasks, at most
    steps = {
        task: _steps(search, method, space.size(COUNTED), len(known[task])) + shared * search.steps
        for task, space in spaces.items()
    }
    total = sum(steps.values())
    most = min(total, search.budget.steps) if search.budget and search.budget.steps else total
    times = read_times(plan, state)
    seconds = [steps[task] * of_task[1] for task in spaces if (of_task := times[task])]
    known_time = len(seconds) == len(spaces) and parallel > 0
    return SearchForecast(
        search=search,
        method=method,
        spaces=tuple(_forecast_space(plan, tasks, spaces[tasks[0]], known) for tasks in alike.values()),
        steps=most,
        resources=resources,
        parallel=parallel,
        seconds=sum(seconds) * most / max(1, total) / parallel if known_time else None,
    )


def _forecast_space(
    plan: Plan, tasks: Sequence[str], space: CountedSpace, known: Mapping[str, Sequence[Point]]
) -> SpaceForecast:
    lora = plan.experts[tasks[0]].lora_parameters
    sample = []
    for point in space.sample(plan.config.search.seed if plan.config.search else 0, _SAMPLE):
        settings = space.settings(point)
        shapes = {group.role: str(group.method).removeprefix("tt:") for group in settings.groups}
        is_cached = all(point in known[task] for task in tasks)
        share = settings.parameters / lora
        sample.append(SampledPoint(point, shapes, settings.parameters, share, settings.train.lr, is_cached))
    sample.sort(key=lambda each: each.parameters)
    cached = {task: len(known[task]) for task in tasks}
    return SpaceForecast(tuple(tasks), space.size(COUNTED), space.choices(), tuple(sample), cached)


def _steps(search: SearchSettings, method: str, size: int, cached: int) -> int:
    """Return the expected optimizer steps on one task. At each rung but the last, one of ``factor`` trials goes on."""
    if method == "truncate":
        return _steps_of_cutting(search, size)
    trials = max(0, min(search.trials, size) - cached)
    total, before, left = 0.0, 0, float(trials)
    for rung in search.rung_steps:
        total += left * (rung - before)
        before, left = rung, left / (search.rungs.factor if search.rungs else 1)
    repeated = search.confirm * min(search.finalists, trials + cached)
    return round(total) + (repeated + len(search.references)) * search.steps


def _steps_of_cutting(search: SearchSettings, size: int) -> int:
    """Return the most optimizer steps of a parent, its cuts, and what is trained after them.

    A finalist is trained with the task's own seed too, as its cut is no training.
    """
    retrained = search.budget.trials or 0 if search.budget else 0
    repeated = (search.confirm + 1) * min(search.finalists, size) if search.confirm else 0
    distilled = (size - 1) * most_distillation_steps(search.steps)
    return distilled + (1 + retrained + repeated + len(search.references)) * search.steps
