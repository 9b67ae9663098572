"""A config for data files: look at them, guess their tasks, choose the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.first_config.config_text import new_config_text
from orchestrator.first_config.new_base import NewBase, choose_base
from orchestrator.first_config.split_groups import group_files
from orchestrator.first_config.task_draft import TaskDraft, draft_task
from orchestrator.first_config.token_lengths import RowLengths, find_tokenizer, measure_rows, needed_length


@dataclass(frozen=True)
class NewConfig:
    """A config for data files.

    Attributes:
        text: Its text.
        base: Its base.
        drafts: Its tasks.
        lengths: Lengths of each task's rows.
    """

    text: str
    base: NewBase
    drafts: tuple[TaskDraft, ...]
    lengths: tuple[RowLengths, ...]


def draft_config(paths: Sequence[Path], folder: Path, library: str) -> NewConfig:
    """Return a config for data files.

    Args:
        paths: The files.
        folder: Folder into which the config is to be written.
        library: Name of the library.

    Raises:
        InputError: If a file cannot be read, or nothing can be learned from it.
    """
    drafts = tuple(draft_task(group) for group in group_files(list(dict.fromkeys(paths))))
    base = choose_base([draft.guess.kind for draft in drafts])
    tokenizer = find_tokenizer(base.settings["package"], base.settings["path"])
    lengths = tuple(measure_rows(draft.examples, tokenizer) for draft in drafts)
    base = base.with_length(max(map(needed_length, lengths)))
    drafts = tuple(
        draft.with_warning(_cut_warning(length, base)) if needed_length(length) > base.positions else draft
        for draft, length in zip(drafts, lengths, strict=True)
    )
    return NewConfig(new_config_text(library, base, drafts, lengths, folder), base, drafts, lengths)


def _cut_warning(lengths: RowLengths, base: NewBase) -> str:
    if lengths.longest_answer:
        return f"the base reads up to {base.positions:,} tokens: longer rows are cut, and a longer answer is refused"
    return f"the base reads up to {base.positions:,} tokens: more than one of twenty rows is longer, and is cut"
