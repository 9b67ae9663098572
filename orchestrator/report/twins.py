"""Twins: tasks that a router confuses and whose labels have common names, so that either expert may be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEAST_CONFUSED = 0.05  # share of a task's validation rows that are routed to the other


def find_twins(
    tasks: Sequence[str], confusion: Sequence[Sequence[int]], labels: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    """Return the groups of tasks that are twins of one another, in the order of the tasks.

    Two tasks are twins if at least ``LEAST_CONFUSED`` of the rows of one are routed to the other and they have a label
    name in common. A twin of a twin belongs to the group.

    Args:
        tasks: Names of the tasks.
        confusion: Counts of validation rows; row i, column j counts rows of task i that were routed to task j.
        labels: Label names by task; none for choices and generated text.
    """
    group_of = {task: [task] for task in tasks}
    for i, task in enumerate(tasks):
        for j, other in enumerate(tasks):
            confused = i != j and confusion[i][j] >= LEAST_CONFUSED * sum(confusion[i]) > 0
            if confused and set(labels[task]) & set(labels[other]) and group_of[task] is not group_of[other]:
                joined = sorted(group_of[task] + group_of[other], key=list(tasks).index)
                group_of |= dict.fromkeys(joined, joined)
    groups = list({id(group): group for group in group_of.values()}.values())
    return [group for group in groups if len(group) > 1]
