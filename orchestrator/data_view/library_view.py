"""The tasks of a config as training sees them, and the rows that they share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.config.error_messages import closest_match
from orchestrator.config.loading import LoadedConfig
from orchestrator.config.schema import Config
from orchestrator.data_view.shared_inputs import SharedInputs, find_shared_inputs
from orchestrator.data_view.task_view import TaskView, view_task
from orchestrator.plan.adapter_fits import AdapterFits
from orchestrator.plan.folders import LibraryFolders
from orchestrator.plan.planning import require_usable_base
from ttmoe.base import load_tokenizer
from ttmoe.errors import InputError
from workers.base.base_sources import resolve_base
from workers.data.examples import Example
from workers.data.prepared import PreparedTask, load_split, prepare_task
from workers.data.splits import SPLIT_NAMES

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class LibraryView:
    """Tasks of a config as training sees them.

    Attributes:
        library: Name of the library.
        max_length: ``base.max_length``.
        tasks: The tasks that were asked for, by name.
        shared: Inputs that two tasks share, of which one was asked for.
    """

    library: str
    max_length: int
    tasks: dict[str, TaskView]
    shared: tuple[SharedInputs, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``ttmoe data --json``."""
        return {
            "library": self.library,
            "max_length": self.max_length,
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
            "shared": [asdict(each) for each in self.shared],
        }


def view_library(loaded: LoadedConfig, task: str | None = None, console: Console | None = None) -> LibraryView:
    """Prepare the data of a config, in ``storage.cache``, and return what training will see of it.

    Args:
        loaded: The config.
        task: The task to view; None for all.
        console: Shows that it is reading; None shows nothing.

    Raises:
        InputError: If there is no such task, or the base or the data cannot be used.
    """
    config = loaded.config
    if task is not None and task not in config.tasks:
        near = closest_match(task, list(config.tasks))
        fix = f"did you mean `{near}`?" if near else f"tasks: {', '.join(config.tasks)}"
        raise InputError(f"no task is named {task!r}", where=loaded.source_name, fix=fix)
    with console.status("reading: base, data") if console else nullcontext():
        folders = LibraryFolders.of(config)
        folders.check_cache()
        tokenizer = _tokenizer(config, folders)
        rows = {name: _rows(prepare_task(name, entry, folders.cache)) for name, entry in config.tasks.items()}
        shown = [task] if task else list(config.tasks)
        views = {
            name: view_task(config.tasks[name], data, splits.get("train", ()), tokenizer, config.base.max_length)
            for name, (data, splits) in rows.items()
            if name in shown
        }
        every = {name: [row for split in splits.values() for row in split] for name, (_, splits) in rows.items()}
        shared = [each for each in find_shared_inputs(every) if task is None or task in each.tasks]
    return LibraryView(config.library, config.base.max_length, views, tuple(shared))


def _rows(data: PreparedTask) -> tuple[PreparedTask, dict[str, Sequence[Example]]]:
    if data.declared_tokens:
        return data, {}
    return data, {split: load_split(data, split) for split in SPLIT_NAMES}


def _tokenizer(config: Config, folders: LibraryFolders) -> Any:
    """Return the base's tokenizer, None of a config without one; raise InputError as a plan does."""
    if config.base.config:
        return None
    # The number format decides nothing here.
    base = resolve_base(**config.base.model_dump(exclude={"config", "dtype"}), dtype="float32", cache=folders.cache)
    fits = AdapterFits(base, folders.cache)
    require_usable_base(config, fits)
    fits.save()
    return load_tokenizer(base)
