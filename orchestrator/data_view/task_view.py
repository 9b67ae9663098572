"""One task as training sees it: its rows by split and class, what was left out, examples, and lengths in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.first_config.token_lengths import COUNTED_ROWS, RowLengths
from workers.data.examples import Example
from workers.data.prepared import PreparedTask
from workers.data.task import GivenSplits, Source, Task
from workers.training.batches import tokenize

SHOWN_ROWS = 5
"""Rows of the training split that are shown."""
_UNLIMITED = 2**30  # tokens


@dataclass(frozen=True)
class TaskView:
    """A task as training sees it.

    Attributes:
        data: The prepared task.
        sources: Where its rows come from, by split; a single source has the key "".
        columns: What it reads of a row: the columns of the input, the answer and the label.
        rows: A few rows of the training split.
        lengths: Lengths of a sample of the training rows in tokens; None if there are no rows or no tokenizer.
        cut_share: Share of this sample that has more tokens than ``base.max_length``.
    """

    data: PreparedTask
    sources: dict[str, str]
    columns: dict[str, Any]
    rows: tuple[Example, ...]
    lengths: RowLengths | None
    cut_share: float

    def fields(self, row: Example) -> dict[str, Any]:
        """Return what a model reads of a row, by the name of each part, and its label or answer."""
        found: dict[str, Any] = {}
        if row.messages:
            return {"messages": [message._asdict() for message in row.messages]}
        names = {"pair": ("first", "second"), "generate": ("prompt",)}.get(self.data.kind, ("text",))
        found |= dict(zip(names, row.texts, strict=True))
        if row.choices:
            found["choices"] = list(row.choices)
        if row.answer:
            found["answer"] = row.answer
        if self.data.label_names:
            found["label"] = self.data.label_names[row.label]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``ttmoe data --json`` for this task."""
        data = self.data
        return {
            "kind": data.kind,
            "sources": self.sources,
            "columns": self.columns,
            "rows_read": sum(data.rows.values()) + sum(data.removed.values()),
            "rows": data.rows,
            "classes": list(data.label_names),
            "counts": data.counts,
            "left_out": data.removed,
            "examples": [self.fields(row) for row in self.rows],
            "tokens": self.lengths.to_dict() if self.lengths else None,
            "cut_share": self.cut_share,
        }


def view_task(task: Task, data: PreparedTask, train: Sequence[Example], tokenizer: Any, max_length: int) -> TaskView:
    """Return the view of a task.

    Args:
        task: The task of the config.
        data: The prepared task.
        train: Its training rows; empty for declared rows.
        tokenizer: Tokenizer of the base; None if there is none.
        max_length: ``base.max_length``.

    Raises:
        InputError: If a row cannot be written in the base's chat template.
    """
    lengths, share = None, 0.0
    if train and tokenizer is not None:
        counted = tokenize(tokenizer, _spaced(train, COUNTED_ROWS), _UNLIMITED).lengths
        lengths = RowLengths.of(counted)
        share = sum(length > max_length for length in counted) / len(counted)
    columns: dict[str, Any] = task.columns.model_dump() if task.columns else {}
    if task.label:
        columns["label"] = task.label.column
    return TaskView(data, _sources(task), columns, tuple(_spaced(train, SHOWN_ROWS)), lengths, share)


def _spaced(rows: Sequence[Example], count: int) -> Sequence[Example]:
    """Return evenly spaced rows: the first ones of a training split are all of the class that fills test last."""
    return rows[:: max(1, len(rows) // count)][:count]


def _sources(task: Task) -> dict[str, str]:
    if task.declared:
        return {"": "declared: there are no rows yet"}
    if isinstance(task.rows, GivenSplits):
        given: Mapping[str, Source | None] = {key: getattr(task.rows, key) for key in ("train", "validation", "test")}
        return {key: _describe_source(source) for key, source in given.items() if source}
    return {"": _describe_source(task.rows)}


def _describe_source(source: Source) -> str:
    if source.wheel:
        return f"{source.file} of {source.wheel}"
    if source.hub:
        return f"{source.hub}{f' {source.name}' if source.name else ''}, split {source.split}, at {source.revision}"
    return str(source.path)
