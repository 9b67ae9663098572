"""One task of a new config: what was guessed of its files, what training will make of them, and what to watch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.first_config.column_profile import profile_columns
from orchestrator.first_config.data_file import DataFile, read_data_file
from orchestrator.first_config.guess import TaskGuess
from orchestrator.first_config.row_filters import (
    filter_conversations,
    filter_empty_cells,
    filter_rejected,
    merge_spellings,
)
from orchestrator.first_config.split_groups import FileGroup
from orchestrator.first_config.task_guess import guess_task
from ttmoe.errors import InputError
from workers.data.examples import Example
from workers.data.prepared import read_splits
from workers.data.rows import value_if_any
from workers.data.splits import SPLIT_NAMES
from workers.data.task import Task

FEW_ROWS = 30
"""Rows below which an accuracy says little."""


@dataclass(frozen=True)
class TaskDraft:
    """A task as it is written into a new config.

    Attributes:
        name: Name of the task.
        files: Its files by split; a single file has the key "".
        guess: What was guessed.
        rows: Number of rows of all files.
        classes: Rows in the splits by label; empty for generated texts.
        removed: Rows in no split by reason, see ``PreparedTask.left_out``; none is 0.
        examples: The rows of all splits as the model will read them.
        notes: What was seen, as sentences.
        warnings: What makes a result doubtful, as sentences.
    """

    name: str
    files: dict[str, DataFile]
    guess: TaskGuess
    rows: int
    classes: dict[str, int]
    removed: dict[str, int]
    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def section(self, folder: Path | None = None) -> dict[str, Any]:
        """Return the task as a section of a config.

        Args:
            folder: Folder of the config, at which the paths of files start; None for absolute paths.
        """
        sources = {split: _source(file, folder) for split, file in self.files.items()}
        section = self.guess.section()
        return {"kind": section.pop("kind"), "source": sources.get("", sources), **section}

    def with_warning(self, warning: str) -> TaskDraft:
        """Return the same with one more warning."""
        return replace(self, warnings=(*self.warnings, warning))


def draft_task(group: FileGroup) -> TaskDraft:
    """Read the files of a task and guess what it is.

    Raises:
        InputError: If a file cannot be read, or nothing can be learned from it.
    """
    files = {split: read_data_file(group.files[split]) for split in ("", *SPLIT_NAMES) if split in group.files}
    first = next(iter(files.values()))
    guess = guess_task(profile_columns(first.rows), str(first.path))
    rows = [row for file in files.values() for row in file.rows]
    notes = [note for file in files.values() for note in file.notes]
    if guess.kind == "chat":
        guess = filter_conversations(guess, rows, str(first.path))
    else:
        guess = filter_rejected(merge_spellings(filter_empty_cells(guess, rows), rows), rows)
    notes += [*guess.notes, *_list_notes(guess, rows)]
    draft = TaskDraft(group.name, files, guess, len(rows), {}, {}, (), tuple(notes), ())
    return _with_splits(draft)


def _with_splits(draft: TaskDraft) -> TaskDraft:
    """Return the draft with what training makes of its rows."""
    task = Task.model_validate(draft.section())
    try:
        splits, names, removed = read_splits(draft.name, task, Path())
    except InputError as error:
        place = ", ".join(str(file.path) for file in draft.files.values())
        what = f"read as a task of kind {task.kind}, {error.where}: {error.what}"
        raise InputError(what, where=place, fix=error.fix) from error
    examples = tuple(example for split in splits.values() for example in split)
    counts = Counter(example.label for example in examples)
    classes = {name: counts[i] for i, name in enumerate(names)} if task.kind != "choice" else {}
    done = replace(draft, classes=classes, removed={k: n for k, n in removed.items() if n}, examples=examples)
    empty = [split for split in SPLIT_NAMES if not splits[split]]
    return replace(done, warnings=tuple(_warnings(done, empty, names)))


def _warnings(draft: TaskDraft, empty: Sequence[str], names: Sequence[str]) -> list[str]:
    found: list[str] = []
    if empty:
        found.append(f"no rows are left for {' and '.join(empty)}, so `ttmoe run` will refuse the task: add rows")
    if len(draft.examples) < FEW_ROWS:
        found.append(
            f"{len(draft.examples)} different rows are few: the accuracy on the handful in the test split says little"
        )
    if draft.guess.label and len(names) < 2:
        found.append(f"all rows have the label {', '.join(names)}: `ttmoe run` will refuse the task; add other classes")
    if single := [name for name, rows in draft.classes.items() if rows == 1]:
        listed = ", ".join(single[:5]) + (", …" if len(single) > 5 else "")
        found.append(
            f"{len(single)} of {len(draft.classes)} classes have one row ({listed}): it is trained on, and no test can "
            "say whether they are learned; add rows, or leave them out with `where`"
        )
    return found


def _list_notes(guess: TaskGuess, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a note for each list of which the first item is read, and others are not."""
    found = []
    for column in guess.read_columns:
        parts = column.split(".")
        for depth in [i for i, part in enumerate(parts) if part == "0"]:
            path = ".".join(parts[:depth])
            several = sum(_items(row, path) > 1 for row in rows)
            if several:
                found.append(
                    f"in {several:,} of {len(rows):,} rows {path} has several items, of which the first is read"
                )
    return list(dict.fromkeys(found))


def _items(row: dict[str, Any], path: str) -> int:
    value = value_if_any(row, path)
    return len(value) if isinstance(value, list | tuple) else 0


def _source(file: DataFile, folder: Path | None) -> dict[str, Any]:
    path = Path(os.path.relpath(file.path, folder.resolve())).as_posix() if folder else str(file.path)
    return {"path": path, **file.settings}
