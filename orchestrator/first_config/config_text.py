"""The text of a new config: the starter's, with tasks for data files and comments on what was seen in them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.loading import STARTER, recipe_text
from orchestrator.config.yaml_document import dump_flow
from orchestrator.first_config.draft_sentences import draft_sentences
from orchestrator.first_config.new_base import NewBase
from orchestrator.first_config.task_draft import TaskDraft
from orchestrator.first_config.token_lengths import RowLengths, needed_length

_WIDTH = 110
_UNTIL, _FROM = "library:", "\n# adapter:"  # in the starter: before its own library, and where its tasks end


def new_config_text(
    library: str, base: NewBase, drafts: Sequence[TaskDraft], lengths: Sequence[RowLengths], folder: Path
) -> str:
    """Return the text of a config.

    Args:
        library: Name of the library.
        base: Its base.
        drafts: Its tasks.
        lengths: Lengths of each task's rows.
        folder: Folder of the config, at which paths of data files start.
    """
    starter = recipe_text(STARTER)
    head, rest = starter[: starter.index(_UNTIL)], starter[starter.index(_FROM) + 1 :]
    lines = [
        *_comment("Written from data files: check what is marked UNCLEAR. `ttmoe data THIS_FILE` shows the rows as "
                  "training will read them.", ""),
        "",
        f"library: {dump_flow(library)}",
        "",
        *_base_lines(base, lengths),
        "",
        "tasks:",
    ]  # fmt: skip
    for draft, length in zip(drafts, lengths, strict=True):
        lines += [f"  {dump_flow(draft.name)}:", *_task_lines(draft, length, folder)]
    for name, section in base.sections.items():
        lines += ["", f"{name}:", *(f"  {key}: {dump_flow(value)}" for key, value in section.items())]
    return head + "\n".join(lines) + "\n\n" + rest


def _base_lines(base: NewBase, lengths: Sequence[RowLengths]) -> Iterator[str]:
    yield f"base:{'':<30}# {base.reason}"
    for key, value in base.settings.items():
        yield f"  {key}: {dump_flow(value)}"
    source = "by the base's tokenizer"
    if lengths[0].estimated:
        source = "estimated from the number of bytes (`ttmoe data` counts them)"
    answers = ", and no answer" if any(each.longest_answer for each in lengths) else ""
    cut = f"At {base.max_length}, at most one of twenty rows of each task is cut{answers}"
    if max(map(needed_length, lengths)) > base.positions:
        cut = "This is all that the base reads; a WARNING below names the tasks of which more rows are cut"
    yield from _comment(
        f"Tokens of an input, {source}. {cut}; longer inputs take more memory and time. The base reads up to "
        f"{base.positions:,}.", "  "
    )  # fmt: skip
    yield f"  max_length: {base.max_length}"


def _task_lines(draft: TaskDraft, length: RowLengths, folder: Path) -> Iterator[str]:
    for sentence in draft_sentences(draft, length):
        yield from _comment(sentence, "    ")
    for key, value in draft.section(folder).items():
        yield from _setting_lines(key, value)
        if key == "label" and "names" not in value and draft.classes and all(map(_is_number, draft.classes)):
            names = {int(float(name)): f"NAME_{i}" for i, name in enumerate(list(draft.classes)[:8])}
            if len(draft.classes) <= len(names):
                yield from _comment(
                    f"names: {dump_flow(names)}", "      ", "names of the classes, instead of the numbers"
                )


def _setting_lines(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield f"    {key}:"
        yield from (f"      - {dump_flow(each)}" for each in value)
    elif isinstance(value, dict):
        yield f"    {key}:"
        yield from (f"      {name}: {dump_flow(inner)}" for name, inner in value.items())
    else:
        yield f"    {key}: {dump_flow(value)}"


def _comment(text: str, indent: str, remark: str = "") -> list[str]:
    """Return lines of a comment; a text with line feeds or other control characters becomes one paragraph."""
    printable = "".join(each if each.isprintable() else " " for each in text)
    if remark:
        return [f"{indent}# {printable}    # {remark}"]
    return textwrap.wrap(
        printable, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _is_number(name: str) -> bool:
    return name.lstrip("-").isdecimal()
