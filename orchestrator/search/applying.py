"""Write what a search recommends into a copy of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.loading import LoadedConfig
from orchestrator.config.task_edits import TaskSections, with_task_sections
from orchestrator.config.yaml_document import read_yaml
from orchestrator.report.search_tables import Record
from ttmoe.atomic_write import write_atomically
from ttmoe.errors import InputError

_DECIDE = ("library", "base", "adapter", "train", "tasks", "head")  # sections on which a recommendation depends
_PROBE = {"adapter": {"method": "tt", "rank": 1, "shape": "auto"}, "train": {"lr": 0.5}, "head": "frozen"}


def check_target(loaded: LoadedConfig, path: Path) -> None:
    """Raise InputError if the copy cannot be written to ``path``, before a search starts."""
    if path.exists():
        raise InputError("the file already exists", where=str(path), fix="choose another path, or remove it")
    if not path.parent.is_dir():
        raise InputError("its folder does not exist", where=str(path), fix="create it, or choose another path")
    here = Path(loaded.source_name).expanduser()
    if here.is_file() and path.resolve().parent != here.resolve().parent:
        what = "the copy would find its data in another folder: relative paths start at the folder of a config"
        raise InputError(what, where=str(path), fix=f"write it to {here.resolve().parent}")
    for override in loaded.overrides:
        name = override.partition("=")[0].strip()
        if name.partition(".")[0] in _DECIDE:
            what = f"the copy would not have `--set {name}`, with which the search is made"
            raise InputError(what, where="--apply", fix="set it in the config itself")
    _edited(loaded, dict.fromkeys(loaded.config.searched_tasks, _PROBE), {})


def write_recommended(loaded: LoadedConfig, records: Sequence[Record], path: Path) -> None:
    """Write a copy of a config whose tasks have the recommended adapters; all else stays as it is.

    Comments stay, except those within a section that is set.

    Args:
        loaded: The config that was searched.
        records: The record of each task.
        path: File to write.

    Raises:
        InputError: If the copy would not be the config with these changes, because of its form of YAML.
    """
    sections, comments = {}, {}
    for record in records:
        if winner := record["winner"]:
            seeds = f", mean of {winner['seeds']} seeds" if winner["seeds"] > 1 else ""
            sections[record["task"]] = winner["sections"]
            comments[record["task"]] = (
                f"ttmoe tune, trial {winner['trials'][0]} of {record['task']}: {winner['parameters']:,} parameters, "
                f"validation accuracy {winner['accuracy']:.3f}{seeds}"
            )
    write_atomically(path, _edited(loaded, sections, comments).encode())


def _edited(loaded: LoadedConfig, sections: TaskSections, comments: Mapping[str, str]) -> str:
    """Return the text of the config with these sections of its tasks; raise InputError if anything else would change.

    With YAML's anchors, aliases and merged keys, a text can say one thing in several places.
    """
    where = loaded.source_name
    before = read_yaml(loaded.text, where).data
    tasks = {task: _merged(before["tasks"][task], values) for task, values in sections.items()}
    wanted = before | {"tasks": before["tasks"] | tasks}
    try:
        text = with_task_sections(loaded.text, sections, {task: comments.get(task, "") for task in sections})
        if read_yaml(text, where).data == wanted:
            return text
    except (InputError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        pass  # the text is not one that can be changed in place
    what = f"the adapters of {', '.join(sections)} cannot be set in this form of YAML (anchors, aliases, merged keys)"
    raise InputError(what, where=where, fix="write their sections out, each in its own task, or leave --apply out")


def _merged(task: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task with sections: those of a mapping are merged into the task's own."""
    return dict(task) | {
        name: (task.get(name) or {}) | dict(values) if isinstance(values, Mapping) else values
        for name, values in sections.items()
    }
