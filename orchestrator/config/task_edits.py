"""Set sections of tasks in the text of a config, and leave the rest of the text with its comments as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from orchestrator.config.yaml_document import construct, dump_flow, read_nodes

TaskSections = Mapping[str, Mapping[str, Any]]
"""By task, the values to set by section: those of a mapping are merged into the section, others replace it."""


def with_task_sections(text: str, sections: TaskSections, comments: Mapping[str, str]) -> str:
    """Return the text of a config with these sections of its tasks.

    Args:
        text: Text of a valid config.
        sections: What to set.
        comments: A comment for each task, without ``#``.
    """
    root = read_nodes(text)
    tasks = dict(_pairs(_child(root, "tasks")))
    edits: list[tuple[int, int, str]] = []
    for task, values in sections.items():
        edits += _edits(tasks[task], values, comments[task])
    for start, end, new in sorted(edits, reverse=True):  # from the end, so that earlier positions stay valid
        text = text[:start] + new + text[end:]
    return text


def _edits(task: yaml.Node, sections: Mapping[str, Any], comment: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and replacement of each change of one task's text."""
    existing = dict(_pairs(task))
    assert isinstance(task, yaml.MappingNode)
    is_block = not task.flow_style
    first = task.value[0][0].start_mark
    added = ""
    for name, values in sections.items():
        node = existing.get(name)
        if node is None:
            added += f"{name}: {dump_flow(values)}" + (f"\n{' ' * first.column}" if is_block else ", ")
            continue
        if isinstance(values, Mapping) and isinstance(node, yaml.MappingNode):
            values = construct(node) | dict(values)
        yield node.start_mark.index, _end(node), dump_flow(values)
    if is_block:
        added = f"# {comment}\n{' ' * first.column}{added}"
    yield first.index, first.index, added


def _pairs(node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    yield from ((key.value, value) for key, value in node.value)


def _child(node: yaml.Node, name: str) -> yaml.Node:
    return dict(_pairs(node))[name]


def _end(node: yaml.Node) -> int:
    """Return the position behind a node's last character; a block ends for PyYAML where the next key begins."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(node, yaml.MappingNode) else last)
