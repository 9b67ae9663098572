"""The one point that suits a whole library: the best mean position over its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from orchestrator.search.finalists import Candidate, as_good_as_best, candidates, choose_winner, small_enough
from orchestrator.search.repetitions import SearchSize
from orchestrator.search.task_search import TaskSearch
from orchestrator.search.trial import Trial


def share_winners(searches: Mapping[str, TaskSearch], size: SearchSize) -> bool:
    """Let every task try the points that are recommended for the others, so that one can be recommended for all.

    Args:
        searches: The search of each task.
        size: What bounds a winner.

    Returns:
        Whether there is something to train. There is nothing after some repetitions, as the winners do not change.
    """
    winners = {
        task: choose_winner(small_enough(search.trials, size.max_parameters), size.within)
        for task, search in searches.items()
    }
    points = [(task, winner.trials[0].point) for task, winner in winners.items() if winner]
    added = [search.add_shared(point) for task, search in searches.items() for other, point in points if other != task]
    return any(added)


def find_shared_point(trials: Mapping[str, Sequence[Trial]], within: float) -> dict[str, Any] | None:
    """Return the point with the best mean position over all tasks, among those that are complete on each of them.

    On each task the points that are as good as the best one come first, the smallest of them before the others; then
    the rest, by accuracy. Among points of one mean position the most accurate one is returned.

    Args:
        trials: The trials of each task.
        within: See ``as_good_as_best``.

    Returns:
        ``point``, ``positions`` by task (1 is the first), ``mean_position``, ``accuracies`` by task, and ``parameters``
        on the first task; None for a single task, or if no point is complete on all.
    """
    found = {task: {each.trials[0].point_key: each for each in candidates(of_task)} for task, of_task in trials.items()}
    common = set.intersection(*(set(points) for points in found.values())) if len(found) > 1 else set()
    if not common:
        return None
    positions = {task: _positions({key: points[key] for key in common}, within) for task, points in found.items()}

    def order(key: str) -> tuple[float, float, str]:
        place = mean(each[key] for each in positions.values())
        return place, -mean(points[key].accuracy for points in found.values()), key

    best = min(common, key=order)
    first = next(iter(found.values()))[best]
    return {
        "point": first.trials[0].point,
        "positions": {task: each[best] for task, each in positions.items()},
        "mean_position": mean(each[best] for each in positions.values()),
        "accuracies": {task: points[best].accuracy for task, points in found.items()},
        "parameters": first.parameters,
    }


def _positions(points: Mapping[str, Candidate], within: float) -> dict[str, int]:
    near = as_good_as_best(list(points.values()), within)

    def order(key: str) -> tuple[bool, float, int]:
        each = points[key]
        is_near = each in near
        return not is_near, each.parameters if is_near else -each.accuracy, each.parameters

    return {key: position for position, key in enumerate(sorted(points, key=order), 1)}
