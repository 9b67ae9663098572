"""Write what a search recommends into a copy of a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.loading import LoadedConfig, load_config
from orchestrator.config.task_edits import with_task_sections
from orchestrator.report.search_tables import Record
from ttmoe.atomic_write import write_atomically
from ttmoe.errors import InputError


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


def write_recommended(loaded: LoadedConfig, records: Sequence[Record], path: Path) -> None:
    """Write a copy of a config whose tasks have the recommended adapters; everything else and all comments stay.

    Overrides of the command line are not written.

    Args:
        loaded: The config that was searched.
        records: The record of each task.
        path: File to write.

    Raises:
        InputError: If the copy could not be read as a config, because of a form of YAML that cannot be changed.
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
    text = with_task_sections(loaded.text, sections, comments)
    write_atomically(path, text.encode())
    found = load_config(path).config
    for task, wanted in sections.items():
        adapter = found.task_adapter(task)
        if any(getattr(adapter, key) != value for key, value in wanted["adapter"].items() if key in ("rank", "shape")):
            path.unlink()
            what = f"the adapter of task {task!r} cannot be set in this form of YAML"
            raise InputError(what, where=loaded.source_name, fix=f"set it by hand: {wanted}")
