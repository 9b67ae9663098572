"""Which of several data files are the splits of one task, and the names of tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "validation": "validation",
    "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
_SPLIT_NAME = re.compile(rf"(?:(.*?)[._-])?({'|'.join(_SPLITS)})(?:-\d{{5}}-of-00001)?", re.IGNORECASE)
_RESERVED = ("router", "search", "unknown")
_LONGEST_NAME = 60


@dataclass(frozen=True)
class FileGroup:
    """The files of one task.

    Attributes:
        name: Name of the task.
        files: The files by split; a single file has the key "".
    """

    name: str
    files: dict[str, Path]


def group_files(paths: Sequence[Path]) -> list[FileGroup]:
    """Return a group for each task: files named as train and test in one folder are one, every other file is another.

    Args:
        paths: The data files, in the order of the tasks.
    """
    splits: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in paths:
        if match := _SPLIT_NAME.fullmatch(_stem(path)):
            key = (path.resolve().parent, match[1] or "")
            splits.setdefault(key, {}).setdefault(_SPLITS[match[2].lower()], path)
    whole = {key: files for key, files in splits.items() if {"train", "test"} <= files.keys()}
    grouped = {path for files in whole.values() for path in files.values()}
    named = [(prefix or folder.name, files) for (folder, prefix), files in whole.items()]
    named += [(_stem(path), {"": path}) for path in paths if path not in grouped]
    named.sort(key=lambda each: min(paths.index(path) for path in each[1].values()))
    groups: list[FileGroup] = []
    for name, files in named:
        groups.append(FileGroup(_task_name(name, {group.name for group in groups}), files))
    return groups


def _stem(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).stem


def _task_name(text: str, taken: set[str]) -> str:
    """Return a valid name that no other task has."""
    name = re.sub(r"[^a-z0-9-]+", "_", text.lower()).strip("_-")[: _LONGEST_NAME - 5].strip("_-") or "task"
    name = f"{name}_task" if name in _RESERVED else name
    return next(each for i in range(1, len(taken) + 2) if (each := name if i == 1 else f"{name}_{i}") not in taken)
