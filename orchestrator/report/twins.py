"""Twins: tasks that a router confuses and whose labels have common names, so that either expert may be right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

LEAST_CONFUSED, LEAST_ROWS = 0.05, 5  # of a task's validation rows that are routed to the other


def find_twins(
    tasks: Sequence[str], confusion: Sequence[Sequence[int]], labels: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    """Return the groups of tasks that are twins of one another, in the order of the tasks.

    Two tasks are twins if at least ``LEAST_CONFUSED`` of the rows of one, and ``LEAST_ROWS``, are routed to the other
    and they have a label name in common; a number is no name. A twin of a twin belongs to the group.

    Args:
        tasks: Names of the tasks.
        confusion: Counts of validation rows; row i, column j counts rows of task i that were routed to task j.
        labels: Label names by task; none for choices and generated text.
    """
    names = {task: {label for label in labels[task] if not label.isdigit()} for task in tasks}
    pairs = [
        (task, other)
        for task, counts in zip(tasks, confusion, strict=True)
        for other, count in zip(tasks, counts, strict=True)
        if task != other and names[task] & names[other] and count >= max(LEAST_ROWS, LEAST_CONFUSED * sum(counts))
    ]
    return join_groups(tasks, pairs)


def join_groups(tasks: Sequence[str], groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return groups without a task in two of them: those with a common task become one, tasks not in ``tasks`` none."""
    group_of = {task: [task] for task in tasks}
    for group in groups:
        members = {task for name in group if name in group_of for task in group_of[name]}
        joined = [task for task in tasks if task in members]
        group_of |= dict.fromkeys(joined, joined)
    unique = {id(group): group for group in group_of.values() if len(group) > 1}
    return list(unique.values())
